"""The device that a program is made for, and what devices can do."""

from typing import Any

import jax

# Kind and multiprocessors of the GPU that a program made elsewhere is cut for.
HOPPER = "NVIDIA H200", 132
SHARED_MEMORY = 227 * 1024  # bytes a block of threads may use on compute capability 9.0

# MiB of VMEM per core, and cores that share one program's grid.
TPUS = {
    "TPU v4": (16, 2),
    "TPU v5 lite": (128, 1),
    "TPU v5e": (128, 1),
    "TPU v5": (64, 2),
    "TPU v5p": (64, 2),
    "TPU v6 lite": (128, 1),
    "TPU v6e": (128, 1),
    "TPU7x": (64, 1),
}
OLDEST_TPU = TPUS["TPU v4"]  # what a program made elsewhere is cut for
SMEM = 2**20 * 7 // 8  # of the 1 MiB for scalars; the compiler keeps its own there too


def gpu() -> Any:
    """The GPU of this process, or None."""
    return _local("cuda")


def gpu_lacks(capability: int, name: str, later: bool = True) -> str | None:
    """The reason why the GPU here is not of a compute capability's major version, or None.

    Args:
      capability: the major version.
      name: of its architecture.
      later: whether a later one will do.
    """
    here = gpu()
    if here is None:
        return None
    major = int(here.compute_capability.partition(".")[0])
    if major == capability or (later and major > capability):
        return None
    wanted = f"{capability}.0 ({name})" + (" or later" if later else "")
    return f"it needs compute capability {wanted}, {here.device_kind} has {here.compute_capability}"


def multiprocessors() -> tuple[str, int]:
    """Kind and multiprocessors of the GPU that a program is made for."""
    described = jax.sharding.get_abstract_mesh().abstract_device
    if described is not None and described.num_cores:
        return described.device_kind, described.num_cores
    here = gpu()
    return (here.device_kind, here.core_count) if here else HOPPER


def tpu() -> str | None:
    """Kind of TPU that a program is made for; None where it is made for any."""
    described = jax.sharding.get_abstract_mesh().abstract_device or _local("tpu")
    return described and described.device_kind


def _local(platform: str) -> Any:
    try:
        return jax.local_devices(backend=platform)[0]
    except RuntimeError:
        return None
