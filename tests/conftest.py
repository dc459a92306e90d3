"""Eight virtual devices for every test."""

import inspect
import os
import pathlib

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
# And what one test compiled, no other compiles again: in this process, the next worker, a
# child, or tomorrow's run. The key is the program itself, with jaxlib's version and flags.
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR", str(pathlib.Path(__file__).parents[1] / "build" / "compiled")
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

import jax
import pytest


@pytest.fixture
def strict_promotion():
    """Mixing dtypes by accident fails; optax itself needs the standard rules."""
    with jax.numpy_dtype_promotion("strict"):
        yield


# Batteries whose cases each compile programs of their own: of these the fast part
# takes every n-th case of a file, or of a test in it; the full suite takes all.
SAMPLED = {
    "test_architectures.py::test_what_is_resolved_shrinks_to_the_same_function": 3,
    "test_arrays.py": 10,
    "test_bench_accelerator.py::test_verification_knows_right_from_wrong": 4,
    "test_channels.py": 5,
    "test_checkpoint.py": 4,
    "test_convolution.py::test_blocks_give_what_the_dense_convolution_gives": 5,
    "test_cpu.py": 10,
    "test_cpu_validation.py": 6,
    "test_cusparselt_metadata.py": 4,
    "test_distributions.py::test_global_total_is_exact_with_ties_over_leaves_and_layers": 3,
    "test_docs.py::test_docstring_examples": 4,
    "test_grouping.py": 30,
    "test_int8_dot.py::test_sums_are_those_of_integers": 5,
    "test_interop.py": 9,
    "test_leaves.py::test_what_is_pruned": 12,
    "test_lookups.py": 5,
    "test_models.py::test_one_step_lowers_the_loss_of_its_batch": 3,
    "test_mosaic_gpu.py": 4,
    "test_mosaic_gpu_schedule.py": 3,
    "test_nn.py": 6,
    "test_pallas_tpu.py": 4,
    "test_patterns.py": 4,
    "test_permute.py": 8,
    "test_pooling.py": 9,
    "test_pruning.py": 6,
    "test_recipes.py": 5,
    "test_regularizers.py::test_group_lasso_is_the_gradient_of_the_norms": 2,
    "test_serialization.py": 4,
    "test_shrink.py": 6,
    "test_sparse_conv.py": 18,
    "test_sparse_dot.py": 24,
    "test_sparse_dot_edges.py": 4,
    "test_sparsify.py": 10,
    "test_safetensors.py": 3,
    "test_top_k.py": 4,
}


def pytest_collection_modifyitems(config, items):
    if config.getoption("--jaxtyping-packages", None):
        # What is refused on purpose would be refused by its annotation, with other words.
        items[:] = [i for i in items if "pytest.raises" not in inspect.getsource(i.function)]
    seen = dict.fromkeys(SAMPLED, 0)
    for item in items:
        for name in (item.path.name, f"{item.path.name}::{item.originalname}"):
            if name in SAMPLED:
                if seen[name] % SAMPLED[name]:
                    item.add_marker(pytest.mark.slow)
                seen[name] += 1
