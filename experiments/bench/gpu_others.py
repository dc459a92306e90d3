"""What else multiplies on a GPU: Triton's blocks, 2:4 by cuSPARSELt, and torch's sparse.

Part of `make gpu`. What is not installed is left out with its reason; what is there is
compared with float64 first. Dense products run in turn with what they are compared
with: jnp.dot beside JAX's, torch's own beside torch's.
"""

import functools
import itertools
import time

import jax
import jax.numpy as jnp
import numpy as np
from jaxsparse.kernels.cuda import products as cusparselt

import jaxsparse as js
from experiments.bench import gpu
from experiments.bench.sparse_dot import draw, seconds
from jaxsparse import kernels
from jaxsparse.sparse_dot import sparse_dot

TWO_FOUR = [((4096, 4096), 8192), ((4096, 14336), 4096), ((8192, 8192), 8192)]
BLOCKS = [(128, 128), (64, 64), (32, 32), (16, 16)]
TRITON_CELLS = [(block, 0.25, (4096, 4096), 8192, d) for block in BLOCKS for d in gpu.DIRECTIONS]
BSR_CELLS = [(64, density) for density in (0.5, 0.1)]  # of torch, on the first shape
ALGORITHMS = 8  # of cuSPARSELt, tried beside its own choice


def report(deadline: float) -> dict:
    """Verifies and measures what is here until `deadline`, and prints it.

    Returns:
      "absent", the reason for everything that is not here; "checks", "rows" as those of
      `gpu`, and "no_time_for".
    """
    found = {"absent": {}, "checks": [], "rows": [], "no_time_for": []}
    groups = {
        "triton": (_missing("triton"), verify_triton, [*map(_triton_cell, TRITON_CELLS)]),
        "cusparselt": (_missing("cusparselt"), verify_two_four, [*map(_two_four_cell, TWO_FOUR)]),
        "torch": (torch_missing(), lambda: [], torch_cells()),
    }
    for name, (reason, verify, cells) in groups.items():
        if reason:
            found["absent"][name] = reason
            print(f"{name} is left out: {reason}", flush=True)
            continue
        for check in verify():
            found["checks"].append({"implementation": name} | check)
            print(
                f"{name:>10} error {check['error']:.1e} {'right' if check['right'] else 'WRONG'}: "
                + ", ".join(f"{k} {v}" for k, v in check.items() if k not in ("error", "right")),
                flush=True,
            )
        for label, measure in cells:
            if time.monotonic() > deadline:
                found["no_time_for"].append(label)
                continue
            row = {"implementation": name} | measure()
            found["rows"].append(row)
            print(
                f"{label}: " + ", ".join(f"{k} {v:.3f} ms" for k, v in row["ms"].items()),
                flush=True,
            )
    return found


def _missing(name: str) -> str | None:
    """Why an implementation cannot be asked for by name here, or None."""
    return kernels.load(name)[1]


# --- Triton --------------------------------------------------------------------------------------


def verify_triton():
    """Rows of errors, as `gpu.verify`'s, for small blocks and float32 too."""
    yield from gpu.verify("triton", BLOCKS, tuple(gpu.ERROR))


def _triton_cell(cell):
    label = "triton {} {} {} rows {} {}".format(*cell)

    def measure():
        row = gpu.measure(*cell, "triton")
        return row | {"ms": {"jnp.dot": row["dense_ms"], "triton": row["ms"]}}

    return label, measure


# --- 2:4 -----------------------------------------------------------------------------------------


def verify_two_four(shape=(256, 384), batches=(300, 7), implementation="cusparselt"):
    """Rows of errors for the product, its gradients, and a weight compressed once."""
    for dtype, rows in itertools.product(gpu.HALVES, batches):
        packed, _ = draw(js.NM(2, 4), shape, 0.5, dtype)
        x, g = gpu.inputs(rows, shape, dtype)
        dense = np.asarray(packed.todense(), np.float64)
        x64, g64 = (np.asarray(a, np.float64) for a in (x, g))
        for direction, (function, operands) in gpu.directions(packed, x, g, implementation).items():
            found = jax.jit(function)(*operands)
            if direction == "dvalues":
                found = packed.with_values(found).todense()
            yield _check(direction, dtype, rows, found, *_expected(direction, x64, g64, dense))
        if implementation == "cusparselt":
            found = cusparselt.multiply(x, _compressed(packed), outputs=shape[1])
            yield _check("kept", dtype, rows, found, *_expected("forward", x64, g64, dense))


def _expected(direction, x, g, dense):
    """The right answer, and what was summed for it."""
    left, right = {
        "forward": (x, dense),
        "dx": (g, dense.T),
        "dvalues": (x.T, g),
    }[direction]
    stored = dense != 0 if direction == "dvalues" else True
    return np.where(stored, left @ right, 0), np.abs(left) @ np.abs(right)


def _check(direction, dtype, rows, found, right, scale):
    error = np.max(np.abs(np.asarray(found, np.float64) - right)) / np.max(scale)
    return {
        "direction": direction,
        "dtype": dtype,
        "rows": rows,
        "error": float(error),
        "right": bool(error <= gpu.ERROR[dtype]),
    }


def _compressed(packed):
    return jax.jit(lambda p: cusparselt.compress(p.values, *p.index, layout=packed.layout))(packed)


def _two_four_cell(cell):
    shape, rows = cell
    return f"2:4 {shape} rows {rows}", lambda: measure_two_four(shape, rows)


def measure_two_four(shape, rows, dtype="bfloat16", kept=True):
    """Milliseconds of jnp.dot, of the form whose columns share their positions, and of cuSPARSELt.

    cuSPARSELt's is timed with the weight compressed in every call, and, where `kept`,
    once before: by its own choice of algorithm and by each of the first few.
    """
    packed, dense = draw(js.NM(2, 4), shape, 0.5, dtype)
    x, _ = gpu.inputs(rows, shape, dtype)
    full = jnp.asarray(dense, dtype)
    runs = {
        "jnp.dot": gpu.repeated(jnp.dot, (x, full)),
        "shared columns": gpu.repeated(*_by_name(_shared(packed, dtype), x, "xla")),
    }
    if kept:
        compressed = _compressed(packed)
        runs["cusparselt, compressing"] = gpu.repeated(*_by_name(packed, x, "cusparselt"))
        for number in (None, *range(ALGORITHMS)):
            multiply = functools.partial(cusparselt.multiply, outputs=shape[1], algorithm=number)
            run = gpu.repeated(multiply, (x, compressed))
            try:
                jax.block_until_ready(run())
            except jax.errors.JaxRuntimeError:
                break  # the device has no algorithm of this number
            runs["cusparselt" if number is None else f"cusparselt, algorithm {number}"] = run
    found = {name: 1e3 * s / gpu.CALLS for name, s in seconds(runs).items()}
    return {"shape": list(shape), "rows": rows, "ms": found}


def _by_name(packed, x, implementation):
    leaves, structure = jax.tree.flatten(packed)

    def product(x, *leaves):
        return sparse_dot(x, jax.tree.unflatten(structure, leaves), implementation=implementation)

    return product, (x, *leaves)


def _shared(packed, dtype):
    """A weight of the same shape and sparsity whose columns keep the same inputs."""
    k, n = packed.shape
    mask = np.broadcast_to((np.arange(k) % 4 < 2)[:, None], (k, n))
    values = np.random.default_rng(2).standard_normal((k, n), np.float32)
    return js.pack(values, js.NM(2, 4), mask, dtype=dtype, columns=n)


# --- torch ---------------------------------------------------------------------------------------


def torch_missing() -> str | None:
    """Why torch cannot multiply on a GPU here, or None."""
    try:
        import torch
    except ImportError as error:
        return f"it is not installed ({error})"
    return None if torch.cuda.is_available() else f"torch {torch.__version__} sees no GPU"


def torch_cells():
    """Cells of torch: 2:4 by its cuSPARSELt and its CUTLASS, and blocks as BSR."""
    cells = [
        (f"torch 2:4 {shape} rows {rows}", functools.partial(measure_torch_two_four, shape, rows))
        for shape, rows in TWO_FOUR
    ]
    shape, rows = TWO_FOUR[0]
    for side, density in BSR_CELLS:
        label = f"torch BSR {side}x{side} density {density} {shape} rows {rows}"
        cells.append((label, functools.partial(measure_torch_bsr, shape, rows, side, density)))
    return cells


def measure_torch_two_four(shape, rows):
    """Milliseconds of torch's linear layer, dense and semi-structured."""
    from torch.sparse import (
        SparseSemiStructuredTensorCUSPARSELT,
        SparseSemiStructuredTensorCUTLASS,
    )

    _, dense = draw(js.NM(2, 4), shape, 0.5, "bfloat16")
    forms = {
        "torch": lambda weight: weight,
        "torch 2:4 cusparselt": SparseSemiStructuredTensorCUSPARSELT.from_dense,
        "torch 2:4 cutlass": SparseSemiStructuredTensorCUTLASS.from_dense,
    }
    return {"shape": list(shape), "rows": rows, "ms": _torch_times(dense, forms, rows)}


def measure_torch_bsr(shape, rows, side, density):
    """Milliseconds of torch's linear layer, dense and in blocks."""
    _, dense = draw(js.Block(side, side), shape, density, "bfloat16")
    forms = {
        "torch": lambda weight: weight,
        "torch BSR": lambda weight: weight.to_sparse_bsr((side, side)),
    }
    cell = {"block": [side, side], "density": density, "shape": list(shape), "rows": rows}
    return cell | {"ms": _torch_times(dense, forms, rows)}


def _torch_times(dense, forms, rows):
    """Milliseconds of every form of a weight that torch has kernels for."""
    import torch

    weight = torch.tensor(np.ascontiguousarray(dense.T), dtype=torch.bfloat16, device="cuda")
    x = torch.randn(rows, dense.shape[0], dtype=torch.bfloat16, device="cuda")

    def run(weight):
        for _ in range(gpu.CALLS):
            torch.nn.functional.linear(x, weight)
        torch.cuda.synchronize()

    runs = {}
    for name, form in forms.items():
        try:
            stored = form(weight)
            run(stored)
            runs[name] = functools.partial(run, stored)
        except (RuntimeError, NotImplementedError, ImportError) as error:
            print(f"{name} is left out: {str(error).splitlines()[0]}", flush=True)
    return {name: 1e3 * s / gpu.CALLS for name, s in seconds(runs).items()}
