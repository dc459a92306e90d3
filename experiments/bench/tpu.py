"""The TPU kernels on a TPU: right first, then how fast. Under ten minutes.

    make tpu PYTHON=python3       # a Python that has jax with libtpu

The same machinery as `gpu`'s, `accelerator`: every kernel against float64, then density,
block, shape and direction in bfloat16 against jnp.dot in the same run.

Writes results/tpu.json; exits 1 where a kernel was wrong, 2 where there is no TPU.
"""

import itertools

import jaxsparse as js
from experiments.bench import accelerator
from experiments.bench.accelerator import Cell, Check
from experiments.bench.accelerator_inputs import DIRECTIONS

KERNEL = "pallas_tpu"
DTYPES = ["bfloat16", "float32", "int8"]
CHECKED = [(128, 128), (256, 512), (64, 64), (32, 96)]
BLOCKS = [(128, 128), (64, 64), (256, 256)]
DENSITIES = [0.5, 0.25, 0.1]
SHAPES = [((4096, 4096), 8192), ((4096, 14336), 4096), ((4096, 4096), 16)]


def checks():
    """Every kernel on a small shape, with ragged batches."""
    for block, dtype, rows in itertools.product(CHECKED, DTYPES, (300, 7)):
        yield Check(js.Block(*block), dtype, (1536, 1536), rows)


def cells():
    """The table's cells, the most telling first."""
    for block, (shape, rows), density in itertools.product(BLOCKS, SHAPES, DENSITIES):
        for direction in DIRECTIONS:
            yield Cell(js.Block(*block), "bfloat16", density, shape, rows, direction)


def absent():
    """Why the kernels cannot run here, or None."""
    return accelerator.no_device("tpu") or accelerator.unavailable(KERNEL, js.Block(*BLOCKS[0]))


def main():
    """Verifies and measures the TPU kernels."""
    accelerator.run("tpu", KERNEL, absent(), checks(), cells())


if __name__ == "__main__":
    main()
