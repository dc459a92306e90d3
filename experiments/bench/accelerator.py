"""What a benchmark on an accelerator does: are the kernels right, and then how fast.

First every product against float64 on small shapes with a ragged batch. Then, on random
data, the table: every row against jnp.dot in bfloat16 in the same run, medians of runs
that take turns, each run so many dependent calls in one program that launching them
costs nothing. What no time is left for is listed, not dropped in silence; what fails to
compile or to run is, too, and the rest goes on.

`gpu` and `tpu` say what is verified and measured on theirs.
"""

import argparse
import collections
import functools
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import jaxsparse as js
import jaxsparse.kernels as kernels
from experiments import measurements
from experiments.bench import accelerator_inputs, gates
from experiments.bench.accelerator_inputs import DIRECTIONS, EIGHT
from experiments.bench.sparse_dot import seconds
from jaxsparse.kernels.layouts import BlockLayout, NMLayout

CALLS = 10  # in one program
NO_TIME = "no time was left"
# Of the largest magnitude that was summed, for weights of every dtype.
ERROR = {"bfloat16": 1e-2, "float16": 2e-3, "float32": 1e-5, "int8": 1e-2, EIGHT: 1e-2}


class Check(NamedTuple):
    """Products to compare with float64."""

    pattern: js.Block | js.NM
    dtype: str
    shape: tuple[int, int]
    rows: int
    directions: tuple[str, ...] = DIRECTIONS


class Cell(NamedTuple):
    """One row of the table."""

    pattern: js.Block | js.NM
    dtype: str
    density: float
    shape: tuple[int, int]
    rows: int
    direction: str


class Others(NamedTuple):
    """What is verified and measured beside the kernels, in its own way.

    Attributes:
      absent: for everything that cannot run here the reason.
      verify: gives rows as `verify` here does.
      measure: takes the deadline and returns rows, and why which others are missing.
    """

    absent: Mapping[str, str]
    verify: Callable[[], Iterable[dict[str, Any]]]
    measure: Callable[[float], tuple[list[dict[str, Any]], dict[str, str]]]


# --- here or not ---------------------------------------------------------------------------------


def no_device(platform: str) -> str | None:
    """Why there is nothing to measure on, or None where JAX uses a "gpu" or "tpu"."""
    if jax.default_backend() == platform:
        return None
    device = jax.devices()[0]
    return f"there is no {platform.upper()} here that jax {jax.__version__} can use ({device})"


def unavailable(implementation: str, pattern: js.Block | js.NM) -> str | None:
    """Why an implementation of `sparse_dot` cannot multiply by such weights here, or None."""
    module, reason = kernels.load(implementation)
    if reason:
        return reason
    shape = 512, 512
    if isinstance(pattern, js.NM):
        layout = NMLayout(shape, pattern.n, pattern.m)
    else:
        layout = BlockLayout(shape, (pattern.rows, pattern.columns), 1)
    x = jax.ShapeDtypeStruct((16, shape[0]), jnp.bfloat16)
    values = jax.ShapeDtypeStruct(layout.values_shape, jnp.bfloat16)
    return module.unsupported("product", layout, x, values, x.dtype)


# --- right ---------------------------------------------------------------------------------------


def name_of(pattern):
    """128x128 or 2:4."""
    if isinstance(pattern, js.NM):
        return f"{pattern.n}:{pattern.m}"
    return f"{pattern.rows}x{pattern.columns}"


def verify(implementation, checks, products=None):
    """Rows that tell, for every product, its largest error relative to what it summed.

    Args:
      implementation: of `sparse_dot`, or what the rows are to call it.
      checks: what to verify.
      products: gives, of a packed weight, x and g, functions and operands by direction;
        None for those of `sparse_dot`.
    """
    products = products or functools.partial(
        accelerator_inputs.directions, implementation=implementation
    )
    for check in checks:
        packed = accelerator_inputs.weight(check.pattern, check.shape, 0.3, check.dtype)
        dense = np.asarray(accelerator_inputs.dense(packed), np.float64)
        x, g = accelerator_inputs.inputs(check.rows, check.shape, check.dtype)
        x64, g64 = (np.asarray(a, np.float64) for a in (x, g))
        stored = np.asarray(accelerator_inputs.stored(packed))
        expected = {
            "forward": (x64 @ dense, np.abs(x64) @ np.abs(dense)),
            "dx": (g64 @ dense.T, np.abs(g64) @ np.abs(dense.T)),
            "dvalues": (np.where(stored, x64.T @ g64, 0), np.abs(x64.T) @ np.abs(g64)),
        }
        for direction in check.directions:
            row = {
                "implementation": implementation,
                "storage": name_of(check.pattern),
                "dtype": check.dtype,
                "rows": check.rows,
                "direction": direction,
            }
            try:
                function, operands = products(packed, x, g)[direction]
                found = jax.block_until_ready(jax.jit(function)(*operands))
            except Exception as failure:  # a compiler's or a device's, of any kind
                yield row | {"error": None, "right": False, "reason": _first_line(failure)}
                continue
            if direction == "dvalues":
                found = packed.replace(values=found, scales=None).todense()
            right, scale = expected[direction]
            error = np.max(np.abs(np.asarray(found, np.float64) - right)) / np.max(scale)
            # A NaN is not right.
            yield row | {"error": float(error), "right": bool(error <= ERROR[check.dtype])}


def _first_line(failure):
    return f"{type(failure).__name__}: {str(failure).strip().partition(chr(10))[0]}"


def _printed(check):
    """A row of `verify`, printed."""
    word = "right" if check["right"] else "WRONG"
    outcome = check["reason"] if "reason" in check else "error {error:.1e}".format(**check)
    print(
        "{implementation}: {storage:>7} {dtype:>13} rows {rows:>3} {direction:>7}: {0} {1}".format(
            outcome, word, **check
        ),
        flush=True,
    )
    return check


# --- how fast ------------------------------------------------------------------------------------


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
    x, g = accelerator_inputs.inputs(rows, shape, "bfloat16")
    w = jax.random.normal(jax.random.key(2), shape, jnp.bfloat16)
    plain = {
        "forward": (jnp.dot, (x, w)),
        "dx": (lambda g, w: jnp.dot(g, w.T), (g, w)),
        "dvalues": (lambda x, g: jnp.dot(x.T, g), (x, g)),
    }
    return repeated(*plain[direction])


def milliseconds(runs):
    """Median milliseconds of one call in every run that makes `CALLS` of them."""
    return {name: 1e3 * time / CALLS for name, time in seconds(runs).items()}


def measure(cell, implementation):
    """One row of the table."""
    packed = accelerator_inputs.weight(cell.pattern, cell.shape, cell.density, cell.dtype)
    x, g = accelerator_inputs.inputs(cell.rows, cell.shape, cell.dtype)
    sparse = accelerator_inputs.directions(packed, x, g, implementation)[cell.direction]
    dense = dense_run(cell.shape, cell.rows, cell.direction)
    found = milliseconds({"dense": dense, "sparse": repeated(*sparse)})
    useful = accelerator_inputs.operations(packed, cell.rows)
    whole = accelerator_inputs.dense_operations(cell.shape, cell.rows)
    return cell._asdict() | {
        "implementation": implementation,
        "storage": name_of(cell.pattern),
        "pattern": str(cell.pattern),
        "ms": found["sparse"],
        "dense_ms": found["dense"],
        "speedup": found["dense"] / found["sparse"],
        "tflops": useful / found["sparse"] / 1e9,
        "dense_tflops": whole / found["dense"] / 1e9,
        "gbytes": packed.nbytes / found["sparse"] / 1e6,
    }


def until(deadline, wanted, function):
    """Rows that `function` makes of what is wanted until `deadline`; why which are missing."""
    rows, missing = [], {}
    for item in wanted:
        if time.monotonic() > deadline:
            missing[str(item)] = NO_TIME
            continue
        try:
            rows.append(function(item))
        except Exception as failure:  # a compiler's or a device's, of any kind
            missing[str(item)] = _first_line(failure)
            print(f"{item}: {missing[str(item)]}", flush=True)
    return rows, missing


def table(implementation, deadline, cells):
    """Rows of the table until `deadline`, and why which cells are missing."""

    def row_of(cell):
        row = measure(cell, implementation)
        print(
            "{implementation}: {storage:>7} {dtype:>13} {shape!s:>13} rows {rows:>5} "
            "{direction:>7} density {density:.2f}: {ms:7.3f} ms, {speedup:5.2f}x jnp.dot, "
            "{tflops:4.0f} TFLOP/s of {dense_tflops:4.0f} dense, weights at {gbytes:4.0f} "
            "GB/s".format(**row),
            flush=True,
        )
        return row

    return until(deadline, cells, row_of)


# --- both ----------------------------------------------------------------------------------------


def run(name, implementation, reason, checks, cells, *, judged_by=(), others=None):
    """Verifies, measures, judges and writes results/NAME.json.

    All checks come first: what is wrong is not measured, and it exits with 1; where there
    was nothing to do, with 2.

    Args:
      name: of the results.
      implementation: of `sparse_dot`.
      reason: why it cannot run here, or None. Without `others` nothing is left to do then.
      checks: of the implementation.
      cells: of its table.
      judged_by: the gates of its table.
      others: whose checks come after its own, and whose rows after its table; or None.
    """
    parser = argparse.ArgumentParser(description=f"{implementation}: right first, then how fast")
    parser.add_argument("--minutes", type=float, default=8, help="after which no cell is begun")
    args = parser.parse_args()
    deadline = time.monotonic() + 60 * args.minutes
    if reason and others is None:
        print(f"nothing was measured: {reason}", file=sys.stderr)
        sys.exit(2)
    absent = {implementation: reason} if reason else {}
    for what, why in (absent | dict(others.absent if others else {})).items():
        print(f"{what} is left out: {why}", flush=True)
    found = [] if reason else [*map(_printed, verify(implementation, checks))]
    found_others = [*map(_printed, others.verify())] if others else []
    verified = found + found_others
    wrong = [check for check in verified if not check["right"]]
    faults = {(c["storage"], c["dtype"], c["direction"]) for c in found if not c["right"]}
    sound, missing = [], {}
    for cell in () if reason else cells:
        if (name_of(cell.pattern), cell.dtype, cell.direction) in faults:
            missing[str(cell)] = "its check failed"
        else:
            sound.append(cell)
    rows, unmeasured = table(implementation, deadline, sound) if sound else ([], {})
    missing |= unmeasured
    rate = gates.add_efficiency(rows) if rows else None
    verdicts = [] if reason else gates.verdicts(judged_by, rows)
    results = {"absent": absent, "checks": found, "rows": rows, "dense_tflops": rate}
    results |= {"gates": verdicts, "missing": missing}
    if others:
        measurements.write(name, results)  # lest one of the others ends the run
        unsound = not all(check["right"] for check in found_others)
        more, missing_others = ([], {}) if unsound else others.measure(deadline)
        rest = {"absent": dict(others.absent), "checks": found_others, "rows": more}
        results["others"] = rest | {"missing": missing_others}
        rows, missing = [*rows, *more], missing | missing_others
    path = measurements.write(name, results)
    print(f"{len(wrong)} of {len(verified)} kernels wrong, {len(rows)} cells measured: {path}")
    for why, count in collections.Counter(missing.values()).items():
        print(f"{count} cells are missing: {why}")
    if rate:
        print(f"efficiency is the share of the best dense rate of this run, {rate:.0f} TFLOP/s")
    for verdict in verdicts:
        print(gates.line(verdict))
    sys.exit(1 if wrong else 0)
