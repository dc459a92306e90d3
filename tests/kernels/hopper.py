"""A Hopper GPU where there is none: interpreted with races watched for, or compiled for only."""

import contextlib
import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsparse.kernels import mosaic_gpu

needs_mosaic = pytest.mark.skipif(bool(mosaic_gpu.missing()), reason=str(mosaic_gpu.missing()))


@contextlib.contextmanager
def interpreted():
    """Runs kernels as on an H200 with two multiprocessors, and fails on a race."""
    from jax._src.pallas.mosaic_gpu.interpret.interpret_pallas_call import (
        get_races,
        reset_gpu_interpret_mode_state,
    )
    from jax.experimental.pallas import mosaic_gpu
    from jax.sharding import AbstractDevice, AbstractMesh, use_abstract_mesh

    mesh = AbstractMesh((), (), abstract_device=AbstractDevice("NVIDIA H200", 2, "gpu"))
    params = mosaic_gpu.InterpretGPUParams(detect_races=True)
    with use_abstract_mesh(mesh), mosaic_gpu.force_gpu_interpret_mode(params):
        try:
            yield
            assert not get_races().races_found
        finally:
            reset_gpu_interpret_mode_state()


def like(shape, dtype):
    """An operand of which only shape and dtype matter."""
    return jax.ShapeDtypeStruct(shape, jnp.dtype(dtype))


H200 = """
platform_name: "CUDA"
device_description_str: "NVIDIA H200"
dnn_version_info { major: 9 minor: 10 }
runtime_version { major: 13 }
gpu_device_info {
  cuda_compute_capability { major: 9 feature_extension: ACCELERATED_FEATURES }
  core_count: 132
  fpus_per_core: 128
  clock_rate_ghz: 1.98
  device_memory_size: 150000000000
  memory_bandwidth: 4800000000000
  l2_cache_size: 62914560
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: 232448
  shared_memory_per_core: 233472
  registers_per_block_limit: 65536
  registers_per_core_limit: 65536
  threads_per_warp: 32
  threads_per_block_limit: 1024
  threads_per_core_limit: 2048
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
}
"""


def no_compiler():
    """Why programs cannot be compiled for an H200 here, or None."""
    wheels = {
        "jax_cuda13_plugin": "jax-cuda13-plugin",
        "jax_plugins.xla_cuda13": "jax-cuda13-pjrt",
        "nvidia.cu13": "nvidia-cuda-nvcc, nvidia-nvvm, nvidia-cuda-crt, nvidia-cuda-nvdisasm",
    }
    missing = [wheel for module, wheel in wheels.items() if not found(module)]
    return mosaic_gpu.missing() or (f"not installed: {', '.join(missing)}" if missing else None)


def found(module):
    try:
        return importlib.util.find_spec(module)
    except ModuleNotFoundError:
        return None


def compile_for_h200(function, *args):
    from jax.experimental import topologies
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

    topology = topologies.get_topology_desc(
        platform="cuda", topology_name="h200", target_config=H200, topology="1x1x1"
    )
    sharding = NamedSharding(Mesh(np.array(topology.devices[:1]), ("d",)), PartitionSpec())
    args = [jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding) for a in args]
    return jax.jit(function).trace(*args).lower().compile()


needs_compiler = pytest.mark.skipif(bool(no_compiler()), reason=str(no_compiler()))


def assert_compiles_well(function, *args, monkeypatch, capfd, multiply="HGMMA"):
    """Compiles for an H200: no spill, no wgmma in series, and the instruction named."""
    for name in ("PTXAS", "SASS"):
        monkeypatch.setenv(f"MOSAIC_GPU_DUMP_{name}", "1")
    compile_for_h200(function, *args)
    said = "".join(capfd.readouterr())
    assert "0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads" in said
    assert "C7510" not in said  # wgmma serialized
    assert "C7508" not in said  # setmaxnreg ignored
    assert multiply in said
