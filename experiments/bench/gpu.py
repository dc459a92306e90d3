"""The Hopper kernels, and what else multiplies on a GPU, on one. Under ten minutes.

    make gpu PYTHON=python3       # a Python that has jax with CUDA

Every kernel against float64, then Hopper's table: every storage, density, shape and
direction, those that a gate speaks of first; then `gpu_others`, and which gates are met.
On another NVIDIA GPU the Hopper kernels are left out, with the reason.

Writes results/gpu.json; exits 1 where a kernel was wrong, 2 where there is no GPU.
"""

import itertools

import jaxsparse as js
from experiments.bench import accelerator, gates, gpu_others
from experiments.bench.accelerator import Cell, Check
from experiments.bench.accelerator_inputs import DIRECTIONS, EIGHT, HALVES

KERNEL = "mosaic_gpu"
SQUARE = [js.Block(side, side) for side in (128, 64, 32)]
TWO_OF_FOUR = js.NM(2, 4)
LARGE = [((4096, 4096), 8192), ((4096, 14336), 4096)]
SMALL = ((4096, 4096), 256)
DECODED = (8192, 28672)  # beyond any cache, compressed too


def checks():
    """Every kernel, every dtype, whole and ragged batches."""
    sides = [(128, 128), (64, 128), (64, 64), (128, 64)]
    narrow = [(32, 32), (32, 128), (128, 32)]
    for block, dtype, rows in itertools.product(sides, HALVES, (300, 7)):
        yield Check(js.Block(*block), dtype, (512, 768), rows)
    for block in narrow:
        yield Check(js.Block(*block), "bfloat16", (512, 768), 300)
    for block in ((128, 128), (32, 64)):
        yield Check(js.Block(*block), "int8", (512, 768), 300)
        yield Check(js.Block(*block), EIGHT, (512, 768), 300, DIRECTIONS[:2])
    for dtype, (shape, rows) in itertools.product(
        (*HALVES, "int8"), (((2048, 256), 64), ((1536, 192), 7), ((1024, 128), 1))
    ):
        yield Check(TWO_OF_FOUR, dtype, shape, rows, DIRECTIONS[:1])


def cells():
    """The table's rows, those that a gate speaks of first."""
    half = "bfloat16"
    for rows in (1, 8, 16, 32, 64):
        yield Cell(TWO_OF_FOUR, half, 0.5, DECODED, rows, "forward")
    for (shape, rows), block in itertools.product(LARGE[:1], SQUARE):
        for density, direction in itertools.product((0.5, 0.25, 0.1, 0.05), DIRECTIONS):
            yield Cell(block, half, density, shape, rows, direction)
    for (shape, rows), block in itertools.product(LARGE[1:], SQUARE[:2]):
        for density, direction in itertools.product((0.25, 0.1), DIRECTIONS):
            yield Cell(block, half, density, shape, rows, direction)
    shape, rows = LARGE[0]
    for density, direction in itertools.product((0.25, 0.1), DIRECTIONS):
        yield Cell(js.Block(64, 128), half, density, shape, rows, direction)
    for dtype, direction in itertools.product((EIGHT, "int8"), DIRECTIONS[:2]):
        yield Cell(SQUARE[0], dtype, 0.25, shape, rows, direction)
    for rows in (1, 16, 64):
        yield Cell(TWO_OF_FOUR, "int8", 0.5, DECODED, rows, "forward")
    shape, rows = SMALL
    for block, density, direction in itertools.product(SQUARE[:2], (0.25, 0.05), DIRECTIONS):
        yield Cell(block, half, density, shape, rows, direction)


def absent():
    """Why the kernels cannot run here, or None."""
    return accelerator.no_device("gpu") or accelerator.unavailable(KERNEL, SQUARE[0])


def main():
    """Verifies and measures the Hopper kernels and the others."""
    others = None if accelerator.no_device("gpu") else gpu_others.here()
    accelerator.run(
        "gpu", KERNEL, absent(), checks(), cells(), judged_by=gates.HOPPER, others=others
    )


if __name__ == "__main__":
    main()
