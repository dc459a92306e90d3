"""The Hopper kernels on a machine without a GPU: interpreted, lowered, exported, compiled."""

import contextlib
import dataclasses
import importlib.util
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from jaxsparse.kernels import pallas_gpu
from jaxsparse.kernels.layouts import BlockLayout, CSCLayout
from jaxsparse.kernels.pallas_gpu import configs

from jaxsparse import kernels
from jaxsparse.arrays import BlockSparse
from jaxsparse.sparse_dot import sparse_dot
from tests.kernels.block_cases import DIRECTIONS, Case

BLOCKS = [(64, 64), (64, 128), (128, 64), (128, 128)]
needs_mosaic = pytest.mark.skipif(bool(pallas_gpu.missing()), reason=str(pallas_gpu.missing()))


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


slow = pytest.mark.slow


@needs_mosaic
@pytest.mark.parametrize("op", DIRECTIONS)
@pytest.mark.parametrize(
    ("case", "out_dtype"),
    [
        pytest.param(Case((64, 64), (2, 3), 70, spare=1), "bfloat16", id="ragged-spare"),
        # The ring wraps around; one warpgroup multiplies.
        pytest.param(Case((64, 64), (9, 2), 40, density=1), "float32", id="deep", marks=slow),
        pytest.param(Case((128, 128), (2, 3), 300), "bfloat16", id="128x128", marks=slow),
        pytest.param(Case((64, 128), (3, 2), 256, "float16"), "float16", id="64x128", marks=slow),
        pytest.param(Case((128, 64), (2, 3), 128, "float16"), "float32", id="128x64", marks=slow),
    ],
)
def test_interpreted_agrees_with_float64_and_has_no_race(case, out_dtype, op):
    with interpreted():
        case.check(pallas_gpu, op, out_dtype)


def weight(case):
    return BlockSparse(case.values, *case.index, case.block, case.layout.shape)


@needs_mosaic
@pytest.mark.parametrize("block", [BLOCKS[0], BLOCKS[-1]], ids=str)
def test_a_training_step_exports_for_a_gpu(block):
    case = Case(block, (3, 4), 300, spare=1)

    def loss(x, values, implementation):
        y = sparse_dot(x, weight(case).with_values(values), implementation=implementation)
        return jnp.sum(y.astype(jnp.float32))

    step = jax.jit(jax.grad(loss, (0, 1)), static_argnums=2)
    exported = export.export(step, platforms=("cuda",))(case.x, case.values, "mosaic_gpu")
    assert exported.mlir_module().count("custom_call @mosaic_gpu") == 3 - 1  # y itself is unused
    assert [a.shape for a in exported.out_avals] == [case.x.shape, case.values.shape]
    forward = jax.jit(loss, static_argnums=2)
    exported = export.export(forward, platforms=("cuda",))(case.x, case.values, "mosaic_gpu")
    assert exported.mlir_module().count("custom_call @mosaic_gpu") == 1
    unasked = export.export(forward, platforms=("cuda",))(case.x, case.values, None)
    assert "mosaic_gpu" not in unasked.mlir_module()


def test_it_is_listed_as_available_by_name_only():
    state = kernels.implementations()["mosaic_gpu"]
    assert state == pallas_gpu.missing() or state.startswith("available by name only: not yet run")


@needs_mosaic
def test_on_another_platform_the_name_is_refused():
    case = Case((64, 64), (2, 2), 8)
    with pytest.raises(ValueError, match="it runs on cuda, this program is for cpu"):
        sparse_dot(case.x, weight(case), implementation="mosaic_gpu")


def like(shape, dtype):
    return jax.ShapeDtypeStruct(shape, jnp.dtype(dtype))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({}, None),
        ({"layout": CSCLayout((256, 256), 8)}, "it takes blocks, not CSCLayout"),
        ({"layout": BlockLayout((256, 256), (32, 64), 8)}, r"64 or 128, these .* \(32, 64\)"),
        ({"layout": BlockLayout((200, 256), (64, 64), 8)}, r"do not divide .* \(200, 256\)"),
        ({"x": like((8, 256), "float32")}, "not float32 and bfloat16"),
        ({"values": like((8, 64, 64), "int8")}, "not bfloat16 and int8"),
        ({"out_dtype": jnp.dtype("float64")}, "not float64"),
    ],
)
def test_calls_that_are_not_taken_are_told_why(change, reason):
    call = {
        "layout": BlockLayout((256, 256), (64, 64), 8),
        "x": like((8, 256), "bfloat16"),
        "values": like((8, 64, 64), "bfloat16"),
        "out_dtype": jnp.dtype("bfloat16"),
    } | change
    found = pallas_gpu.unsupported("product", **call)
    if reason is None:
        assert found is None
    else:
        with pytest.raises(ValueError, match=reason):
            raise ValueError(found)


def test_other_devices_are_not_taken(monkeypatch):
    @dataclasses.dataclass
    class Device:
        device_kind: str = "NVIDIA A100"
        compute_capability: str = "8.0"

    monkeypatch.setattr(pallas_gpu, "_gpu", Device)
    layout = BlockLayout((256, 256), (64, 64), 8)
    x, values = like((8, 256), "bfloat16"), like((8, 64, 64), "bfloat16")
    reason = pallas_gpu.unsupported("product", layout, x, values, x.dtype)
    assert reason == "it needs compute capability 9.0 (Hopper), NVIDIA A100 has 8.0"


@needs_mosaic
def test_nothing_to_multiply_is_zero():
    layout = BlockLayout((64, 128), (64, 64), 0)
    index = jnp.zeros(3, jnp.int32), jnp.zeros(0, jnp.int32)
    x, values = jnp.ones((5, 64), jnp.bfloat16), jnp.zeros((0, 64, 64), jnp.bfloat16)
    options = {"layout": layout, "out_dtype": jnp.dtype("float32")}
    y = pallas_gpu.product(x, values, *index, transpose=False, **options)
    np.testing.assert_array_equal(y, np.zeros((5, 128)))
    assert pallas_gpu.sampled(x, y.astype(x.dtype), *index, **options).shape == (0, 64, 64)


@pytest.mark.parametrize("out_bytes", [2, 4])
@pytest.mark.parametrize("rows", [1, 64, 65, 128, 129, 8192])
@pytest.mark.parametrize("block", BLOCKS, ids=str)
@pytest.mark.parametrize("op", ["product", "sampled"])
def test_every_heuristic_tile_fits_shared_memory(op, block, rows, out_bytes):
    config = configs.heuristic(op, block, rows, out_bytes)
    assert config.stages >= 2
    tile = block if op == "sampled" else (config.tile_rows, block[1])
    wide = configs.slots((config.wg_rows, tile[1])) * configs.EPILOGUE**2
    used = config.stages * configs.DEPTH * sum(tile) * 2 + config.warpgroups * wide * out_bytes
    assert used <= configs.SHARED_MEMORY - configs.RESERVED
    assert config.tile_rows == (block[0] if op == "sampled" else tile[0])


def test_a_measured_configuration_goes_first(monkeypatch, tmp_path):
    config = configs.Config(64, 1, 2)
    entry = {"op": "product", "block": [64, 64], "rows": 512, "config": dataclasses.asdict(config)}
    (tmp_path / "tuned").mkdir()
    (tmp_path / "tuned" / "NVIDIA_H900.json").write_text(json.dumps([entry]))
    monkeypatch.setattr(configs, "__file__", str(tmp_path / "configs.py"))
    assert configs.configure("product", (64, 64), 600, 2, "NVIDIA H900") == config
    for other in (
        ("product", (64, 64), 511),
        ("product", (64, 128), 600),
        ("sampled", (64, 64), 600),
    ):
        assert configs.configure(*other, 2, "NVIDIA H900") == configs.heuristic(*other, 2)


# --- compiled for the device ---------------------------------------------------------------------

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
    return pallas_gpu.missing() or (f"not installed: {', '.join(missing)}" if missing else None)


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


@slow
@pytest.mark.skipif(bool(no_compiler()), reason=str(no_compiler()))
@pytest.mark.parametrize("rows", [64, 4096])
@pytest.mark.parametrize("block", BLOCKS, ids=str)
@pytest.mark.parametrize("op", DIRECTIONS)
def test_compiled_for_an_h200_it_spills_nothing(op, block, rows, monkeypatch, capfd):
    for name in ("PTXAS", "SASS"):
        monkeypatch.setenv(f"MOSAIC_GPU_DUMP_{name}", "1")
    layout = BlockLayout((1024, 2048), block, 40)
    index = [like(shape, "int32") for shape in layout.index_shapes]
    x, g = (like((rows, size), "bfloat16") for size in layout.shape)
    values = like(layout.values_shape, "bfloat16")
    options = {"layout": layout, "out_dtype": jnp.dtype("bfloat16")}

    def run(a, b, *index):
        if op == "sampled":
            return pallas_gpu.sampled(a, b, *index, **options)
        return pallas_gpu.product(a, b, *index, transpose=op == "transposed", **options)

    compile_for_h200(run, g if op == "transposed" else x, g if op == "sampled" else values, *index)
    said = "".join(capfd.readouterr())
    assert "0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads" in said
    assert "C7510" not in said  # wgmma serialized
    assert "HGMMA" in said
