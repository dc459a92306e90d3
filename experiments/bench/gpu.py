"""The Hopper kernels on a Hopper GPU: right first, then how fast. Under ten minutes.

    make gpu PYTHON=python3       # a Python that has jax with CUDA

First every kernel against float64 on small shapes with a ragged batch. Then, in
bfloat16 on random data, every density, block, shape and direction against jnp.dot
in the same run: medians of runs that take turns, each run so many dependent calls
in one program that launching them costs nothing. What no time is left for is
listed, not dropped in silence. `gpu_others` adds what else is installed.

Writes results/gpu.json; exits 1 where a kernel was wrong, 2 where there is no GPU.
"""

import argparse
import functools
import itertools
import math
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import jaxsparse as js
from experiments.bench import timing
from experiments.bench.sparse_dot import draw, seconds
from jaxsparse.sparse_dot import matrix_product, sampled_product

KERNEL = "mosaic_gpu"
BLOCKS = [(128, 128), (64, 128), (64, 64)]
DENSITIES = [0.5, 0.25, 0.1, 0.05]
SHAPES = [((4096, 4096), 8192), ((4096, 14336), 4096), ((4096, 4096), 256)]
DIRECTIONS = ["forward", "dx", "dvalues"]
CALLS = 10  # in one program
ERROR = {"bfloat16": 1e-2, "float16": 2e-3}  # of the largest magnitude that was summed


def directions(packed, x, g, implementation):
    """The three products of a weight as functions of arrays, with their operands."""

    (values, *index), structure = jax.tree.flatten(packed)

    def product(x, values, *index, transpose):
        packed = jax.tree.unflatten(structure, [values, *index])
        return matrix_product(x, packed, transpose=transpose, implementation=implementation)

    def sampled(x, g, *index):
        packed = jax.tree.unflatten(structure, [values, *index])
        return sampled_product(x, g, packed, implementation=implementation)

    return {
        "forward": (functools.partial(product, transpose=False), (x, values, *index)),
        "dx": (functools.partial(product, transpose=True), (g, values, *index)),
        "dvalues": (sampled, (x, g, *index)),
    }


@functools.lru_cache(maxsize=1)  # the directions of one cell share it
def weight(block, shape, density, dtype):
    """A packed weight and the dense one it stands for."""
    return draw(js.Block(*block), shape, density, dtype)


def inputs(rows, shape, dtype):
    """x and g, standard normal."""
    rng = np.random.default_rng(1)
    return [jnp.asarray(rng.standard_normal((rows, size), np.float32), dtype) for size in shape]


def verify(implementation, blocks=BLOCKS, dtypes=tuple(ERROR), shape=(512, 768), batches=(300, 7)):
    """Rows that tell, for every kernel, its largest error relative to what it summed."""
    for block, dtype, rows in itertools.product(blocks, dtypes, batches):
        packed, _ = weight(block, shape, 0.3, dtype)
        dense = np.asarray(packed.todense(), np.float64)
        x, g = inputs(rows, shape, dtype)
        x64, g64 = (np.asarray(a, np.float64) for a in (x, g))
        stored = np.repeat(np.repeat(grid_of(packed), block[0], 0), block[1], 1)
        expected = {
            "forward": (x64 @ dense, np.abs(x64) @ np.abs(dense)),
            "dx": (g64 @ dense.T, np.abs(g64) @ np.abs(dense.T)),
            "dvalues": (np.where(stored, x64.T @ g64, 0), np.abs(x64.T) @ np.abs(g64)),
        }
        for direction, (function, operands) in directions(packed, x, g, implementation).items():
            found = jax.jit(function)(*operands)
            if direction == "dvalues":
                found = packed.with_values(found).todense()
            right, scale = expected[direction]
            error = np.max(np.abs(np.asarray(found, np.float64) - right)) / np.max(scale)
            yield {
                "block": list(block),
                "dtype": dtype,
                "rows": rows,
                "direction": direction,
                "error": float(error),
                "right": bool(error <= ERROR[dtype]),  # a NaN is not
            }


def grid_of(packed):
    """Which blocks of the grid are stored."""
    indptr, rows = (np.asarray(a) for a in packed.index)
    kept = np.zeros(packed.layout.grid, bool)
    kept[rows[: indptr[-1]], np.repeat(np.arange(len(indptr) - 1), np.diff(indptr))] = True
    return kept


def repeated(function, operands):
    """A run of `CALLS` calls one after another, in one program."""

    def program(*operands):
        def call(_, previous):
            # Each call waits for the one before, and none can be left out or moved
            # out of the loop: not what depends on the index alone either.
            *own, _ = lax.optimization_barrier((*operands, previous))
            result = lax.optimization_barrier(function(*own))
            return result[(0,) * result.ndim].astype(jnp.float32)

        return lax.fori_loop(0, CALLS, call, jnp.float32(0))

    compiled = jax.jit(program)
    return lambda: compiled(*operands)


def measure(block, density, shape, rows, direction, implementation):
    """One row of the table."""
    packed, dense = weight(block, shape, density, "bfloat16")
    x, g = inputs(rows, shape, "bfloat16")
    full = jnp.asarray(dense, "bfloat16")
    plain = {
        "forward": (jnp.dot, (x, full)),
        "dx": (lambda g, w: jnp.dot(g, w.T), (g, full)),
        "dvalues": (lambda x, g: jnp.dot(x.T, g), (x, g)),
    }
    found = seconds(
        {
            "dense": repeated(*plain[direction]),
            "sparse": repeated(*directions(packed, x, g, implementation)[direction]),
        }
    )
    dense_s, sparse_s = found["dense"] / CALLS, found["sparse"] / CALLS
    return {
        "block": list(block),
        "density": density,
        "shape": list(shape),
        "rows": rows,
        "direction": direction,
        "ms": sparse_s * 1e3,
        "dense_ms": dense_s * 1e3,
        "speedup": dense_s / sparse_s,
        "tflops": 2 * rows * packed.layout.stored / sparse_s / 1e12,
        "dense_tflops": 2 * rows * math.prod(shape) / dense_s / 1e12,
    }


def table(implementation, deadline, cells=None):
    """Rows of the table until `deadline`, and the cells there was no time for."""
    if cells is None:
        cells = [
            (block, density, shape, rows, direction)
            for (shape, rows), block, density, direction in itertools.product(
                SHAPES, BLOCKS, DENSITIES, DIRECTIONS
            )
        ]
    rows = []
    for n, cell in enumerate(cells):
        if time.monotonic() > deadline:
            return rows, cells[n:]
        rows.append(measure(*cell, implementation))
        print(
            "{block!s:>10} {shape!s:>13} rows {rows:>5} {direction:>7} density {density:.2f}: "
            "{ms:7.3f} ms, {speedup:5.2f}x jnp.dot, {tflops:4.0f} TFLOP/s of "
            "{dense_tflops:4.0f} dense".format(**rows[-1]),
            flush=True,
        )
    return rows, []


def absent():
    """Why the kernels cannot run here, or None."""
    from jaxsparse.kernels import pallas_gpu
    from jaxsparse.kernels.layouts import BlockLayout

    if jax.default_backend() != "gpu":
        return f"there is no GPU here that jax {jax.__version__} can use ({jax.devices()[0]})"
    layout = BlockLayout((128, 128), (128, 128), 1)
    half = jax.ShapeDtypeStruct((128, 128), jnp.bfloat16)
    return pallas_gpu.missing() or pallas_gpu.unsupported("product", layout, half, half, half.dtype)


def main():
    """Verifies, measures, writes results/gpu.json."""
    from experiments.bench import gpu_others  # which imports this module

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=8, help="after which no cell is begun")
    args = parser.parse_args()
    deadline = time.monotonic() + 60 * args.minutes
    reason = absent()
    if reason:
        print(f"nothing was measured: {reason}", file=sys.stderr)
        sys.exit(2)
    checks = []
    for check in verify(KERNEL):
        checks.append(check)
        print(
            "{block!s:>10} {dtype:>8} rows {rows:>3} {direction:>7}: error {error:.1e} {0}".format(
                "right" if check["right"] else "WRONG", **check
            ),
            flush=True,
        )
    others = gpu_others.report(deadline)
    wrong = [check for check in checks + others["checks"] if not check["right"]]
    rows, left = ([], []) if wrong else table(KERNEL, deadline)
    results = {"checks": checks, "rows": rows, "no_time_for": left, "others": others}
    path = timing.write("gpu", results)
    print(f"{len(wrong)} kernels wrong, {len(rows)} cells measured: {path}")
    if left:
        print(f"no time was left for {len(left)} cells")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
