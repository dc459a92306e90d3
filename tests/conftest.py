"""Eight virtual devices for every test."""

import os

# Before jax is imported: flags are read when the backend starts. Compiling is most
# of what the suite does, so LLVM is told to take it easy.
os.environ["XLA_FLAGS"] = " ".join(
    [
        os.environ.get("XLA_FLAGS", ""),
        "--xla_force_host_platform_device_count=8",
        "--xla_backend_optimization_level=1",
        "--xla_llvm_disable_expensive_passes=true",
    ]
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import pytest


@pytest.fixture
def strict_promotion():
    """Mixing dtypes by accident fails; optax itself needs the standard rules."""
    with jax.numpy_dtype_promotion("strict"):
        yield
