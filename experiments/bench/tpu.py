"""The TPU kernels on a TPU: right first, then how fast. Under ten minutes.

    make tpu PYTHON=python3       # a Python that has jax with libtpu

The same checks and the same table as `gpu`, for other blocks, dtypes and shapes: every
kernel against float64 on small shapes with a ragged batch, then density, block, shape
and direction in bfloat16 against jnp.dot in the same run.

Writes results/tpu.json; exits 1 where a kernel was wrong, 2 where there is no TPU.
"""

import itertools

import jax
import jax.numpy as jnp

import jaxsparse as js
from experiments.bench import gpu

KERNEL = "pallas_tpu"
DTYPES = ["bfloat16", "float32", "int8"]
CHECKED = [(128, 128), (256, 512), (64, 64), (32, 96)]
BLOCKS = [(128, 128), (64, 64), (256, 256)]
DENSITIES = [0.5, 0.25, 0.1]
SHAPES = [((4096, 4096), 8192), ((4096, 14336), 4096), ((4096, 4096), 16)]


def checks():
    """Every kernel on a small shape, with ragged batches."""
    for block, dtype, rows in itertools.product(CHECKED, DTYPES, (300, 7)):
        yield gpu.Check(js.Block(*block), dtype, (1536, 1536), rows)


def cells():
    """The table's cells, the most telling first."""
    for block, (shape, rows), density in itertools.product(BLOCKS, SHAPES, DENSITIES):
        for direction in gpu.DIRECTIONS:
            yield gpu.Cell(js.Block(*block), "bfloat16", density, shape, rows, direction)


def absent():
    """Why the kernels cannot run here, or None."""
    from jaxsparse.kernels import pallas_tpu
    from jaxsparse.kernels.layouts import BlockLayout

    if jax.default_backend() != "tpu":
        return f"there is no TPU here that jax {jax.__version__} can use ({jax.devices()[0]})"
    layout = BlockLayout((128, 128), (128, 128), 1)
    half = jax.ShapeDtypeStruct((128, 128), jnp.bfloat16)
    return pallas_tpu.unsupported("product", layout, half, half, half.dtype)


def main():
    """Verifies and measures the TPU kernels."""
    gpu.run("tpu", KERNEL, absent(), checks(), cells())


if __name__ == "__main__":
    main()
