"""The Hopper kernels on a Hopper GPU: right first, then how fast. Under ten minutes.

    make gpu PYTHON=python3       # a Python that has jax with CUDA

First every kernel against float64 on small shapes with a ragged batch. Then, on random
data, every storage, density, shape and direction against jnp.dot in bfloat16 in the
same run: medians of runs that take turns, each run so many dependent calls in one
program that launching them costs nothing. Gated kernels come first; what no time is
left for is listed, not dropped in silence. Last, which gates are met.

Writes results/gpu.json; exits 1 where a kernel was wrong, 2 where there is no GPU.
"""

import argparse
import functools
import itertools
import sys
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import jaxsparse as js
from experiments.bench import gates, gpu_inputs, timing
from experiments.bench.gpu_inputs import DIRECTIONS, EIGHT, HALVES
from experiments.bench.sparse_dot import seconds

KERNEL = "mosaic_gpu"
SQUARE = [js.Block(side, side) for side in (128, 64, 32)]
TWO_OF_FOUR = js.NM(2, 4)
LARGE = [((4096, 4096), 8192), ((4096, 14336), 4096)]
SMALL = ((4096, 4096), 256)
DECODED = (8192, 28672)  # beyond any cache, compressed too
CALLS = 10  # in one program
# Of the largest magnitude that was summed.
ERROR = {"bfloat16": 1e-2, "float16": 2e-3, "float32": 1e-5, "int8": 1e-2, EIGHT: 1e-2}


class Check(NamedTuple):
    """Products to compare with float64."""

    pattern: js.Block | js.NM
    dtype: str
    shape: tuple[int, int]
    rows: int


class Cell(NamedTuple):
    """One row of the table."""

    pattern: js.Block | js.NM
    dtype: str
    density: float
    shape: tuple[int, int]
    rows: int
    direction: str


def checks():
    """Every kernel, every dtype, whole and ragged batches."""
    sides = [(128, 128), (64, 128), (64, 64), (128, 64)]
    narrow = [(32, 32), (32, 128), (128, 32)]
    for block, dtype, rows in itertools.product(sides, HALVES, (300, 7)):
        yield Check(js.Block(*block), dtype, (512, 768), rows)
    for block in narrow:
        yield Check(js.Block(*block), "bfloat16", (512, 768), 300)
    for block, dtype in itertools.product(((128, 128), (32, 64)), ("int8", EIGHT)):
        yield Check(js.Block(*block), dtype, (512, 768), 300)
    for dtype, (shape, rows) in itertools.product(
        (*HALVES, "int8"), (((2048, 256), 64), ((1536, 192), 7), ((1024, 128), 1))
    ):
        yield Check(TWO_OF_FOUR, dtype, shape, rows)


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


def name_of(pattern):
    """128x128 or 2:4."""
    if isinstance(pattern, js.NM):
        return f"{pattern.n}:{pattern.m}"
    return f"{pattern.rows}x{pattern.columns}"


def verify(implementation, wanted=None):
    """Rows that tell, for every kernel, its largest error relative to what it summed."""
    for check in checks() if wanted is None else wanted:
        packed = gpu_inputs.weight(check.pattern, check.shape, 0.3, check.dtype)
        dense = np.asarray(gpu_inputs.dense(packed), np.float64)
        x, g = gpu_inputs.inputs(check.rows, check.shape, check.dtype)
        x64, g64 = (np.asarray(a, np.float64) for a in (x, g))
        expected = {
            "forward": (x64 @ dense, np.abs(x64) @ np.abs(dense)),
            "dx": (g64 @ dense.T, np.abs(g64) @ np.abs(dense.T)),
            "dvalues": (x64.T @ g64, np.abs(x64.T) @ np.abs(g64)),
        }
        products = gpu_inputs.directions(packed, x, g, implementation)
        for direction in gpu_inputs.directions_of(check.pattern, check.dtype):
            function, operands = products[direction]
            found = jax.jit(function)(*operands)
            right, scale = expected[direction]
            if direction == "dvalues":
                found = packed.replace(values=found, scales=None).todense()
                block = check.pattern.rows, check.pattern.columns
                right = np.where(np.kron(gpu_inputs.grid_of(packed), np.ones(block)), right, 0)
            error = np.max(np.abs(np.asarray(found, np.float64) - right)) / np.max(scale)
            yield {
                "storage": name_of(check.pattern),
                "dtype": check.dtype,
                "rows": check.rows,
                "direction": direction,
                "error": float(error),
                "right": bool(error <= ERROR[check.dtype]),  # a NaN is not
            }


def repeated(function, operands, ahead=False):
    """A run of `CALLS` calls one after another, in one program; compiled at once if `ahead`."""

    def program(*operands):
        def call(_, previous):
            # Each call waits for the one before, and none can be left out or moved
            # out of the loop: not what depends on the index alone either.
            *own, _ = lax.optimization_barrier((*operands, previous))
            result = lax.optimization_barrier(function(*own))
            return result[(0,) * result.ndim].astype(jnp.float32)

        return lax.fori_loop(0, CALLS, call, jnp.float32(0))

    compiled = jax.jit(program)
    if ahead:
        compiled = compiled.lower(*operands).compile()
    return lambda: compiled(*operands)


@functools.lru_cache(maxsize=3)  # the storages of one shape share it
def dense_run(shape, rows, direction):
    """jnp.dot of the same sizes in bfloat16, on random data."""
    x, g = gpu_inputs.inputs(rows, shape, "bfloat16")
    w = jax.random.normal(jax.random.key(2), shape, jnp.bfloat16)
    plain = {
        "forward": (jnp.dot, (x, w)),
        "dx": (lambda g, w: jnp.dot(g, w.T), (g, w)),
        "dvalues": (lambda x, g: jnp.dot(x.T, g), (x, g)),
    }
    return repeated(*plain[direction])


def measure(cell, implementation):
    """One row of the table."""
    packed = gpu_inputs.weight(cell.pattern, cell.shape, cell.density, cell.dtype)
    x, g = gpu_inputs.inputs(cell.rows, cell.shape, cell.dtype)
    sparse = gpu_inputs.directions(packed, x, g, implementation)[cell.direction]
    runs = {"dense": dense_run(cell.shape, cell.rows, cell.direction), "sparse": repeated(*sparse)}
    found = {name: time / CALLS for name, time in seconds(runs).items()}
    useful = gpu_inputs.operations(packed, cell.rows)
    return cell._asdict() | {
        "storage": name_of(cell.pattern),
        "pattern": str(cell.pattern),
        "ms": found["sparse"] * 1e3,
        "dense_ms": found["dense"] * 1e3,
        "speedup": found["dense"] / found["sparse"],
        "tflops": useful / found["sparse"] / 1e12,
        "dense_tflops": gpu_inputs.dense_operations(cell.shape, cell.rows) / found["dense"] / 1e12,
        "gbytes": packed.nbytes / found["sparse"] / 1e9,
    }


def table(implementation, deadline, wanted=None):
    """Rows of the table until `deadline`, and the cells there was no time for."""
    wanted = list(cells() if wanted is None else wanted)
    rows = []
    for n, cell in enumerate(wanted):
        if time.monotonic() > deadline:
            return rows, wanted[n:]
        rows.append(measure(cell, implementation))
        print(
            "{storage:>7} {dtype:>13} {shape!s:>13} rows {rows:>5} {direction:>7} density "
            "{density:.2f}: {ms:7.3f} ms, {speedup:5.2f}x jnp.dot, {tflops:4.0f} TFLOP/s of "
            "{dense_tflops:4.0f} dense, weights at {gbytes:4.0f} GB/s".format(**rows[-1]),
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


def run(name, implementation, reason, wanted=None, asked=None):
    """Verifies, measures, judges, writes results/NAME.json; says why not if there is a reason.

    Args:
      name: of the results.
      implementation: of `sparse_dot`.
      reason: why nothing can be measured here, or None.
      wanted: the checks, None for `checks()`.
      asked: the cells, None for `cells()` and its gates.
    """
    parser = argparse.ArgumentParser(description=f"{implementation}: right first, then how fast")
    parser.add_argument("--minutes", type=float, default=8, help="after which no cell is begun")
    args = parser.parse_args()
    deadline = time.monotonic() + 60 * args.minutes
    if reason:
        print(f"nothing was measured: {reason}", file=sys.stderr)
        sys.exit(2)
    found = []
    for check in verify(implementation, wanted):
        found.append(check)
        print(
            "{storage:>7} {dtype:>13} rows {rows:>3} {direction:>7}: error {error:.1e} {0}".format(
                "right" if check["right"] else "WRONG", **check
            ),
            flush=True,
        )
    wrong = [check for check in found if not check["right"]]
    rows, left = ([], []) if wrong else table(implementation, deadline, asked)
    rate = gates.add_efficiency(rows) if rows else None
    verdicts = gates.verdicts(rows) if asked is None else []
    results = {"checks": found, "rows": rows, "dense_tflops": rate, "gates": verdicts}
    path = timing.write(name, results | {"no_time_for": [str(cell) for cell in left]})
    print(f"{len(wrong)} of {len(found)} kernels wrong, {len(rows)} cells measured: {path}")
    if left:
        print(f"no time was left for {len(left)} cells")
    if rate:
        print(f"efficiency is the share of the best dense rate of this run, {rate:.0f} TFLOP/s")
    for verdict in verdicts:
        print(gates.line(verdict))
    sys.exit(1 if wrong else 0)


def main():
    """Verifies and measures the Hopper kernels."""
    run("gpu", KERNEL, absent())


if __name__ == "__main__":
    main()
