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
from jaxsparse.sparse_dot import matrix_product, sampled_product

DIRECTIONS = "forward", "dx", "dvalues"
# Of the largest magnitude that was summed.
ERROR = {"bfloat16": 1e-2, "float16": 2e-3, "float32": 1e-5}
TWO_FOUR = [((4096, 4096), 8192), ((4096, 14336), 4096), ((8192, 8192), 8192)]
BLOCKS = [(128, 128), (64, 64), (32, 32), (16, 16)]
TRITON = [(block, 0.25, (4096, 4096), 8192, d) for block in BLOCKS for d in DIRECTIONS]
BSR_CELLS = [(64, density) for density in (0.5, 0.1)]  # of torch, on the first shape
ALGORITHMS = 8  # of cuSPARSELt, tried beside its own choice


def report(deadline: float) -> dict:
    """Verifies and measures what is here until `deadline`, and prints it.

    Returns:
      "absent", the reason for everything that is not here; "checks" with their errors;
      "rows" with milliseconds by name; and "no_time_for".
    """
    found = {"absent": {}, "checks": [], "rows": [], "no_time_for": []}
    groups = {
        "triton": (_missing("triton"), verify_triton, [*map(_triton_cell, TRITON)]),
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


# --- right ---------------------------------------------------------------------------------------


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


def inputs(rows, shape, dtype):
    """x and g, standard normal."""
    rng = np.random.default_rng(1)
    return [jnp.asarray(rng.standard_normal((rows, size), np.float32), dtype) for size in shape]


def verify_triton():
    """Rows of errors for every block and dtype."""
    for side in BLOCKS:
        yield from verify("triton", js.Block(*side), tuple(ERROR), (384, 256))


def verify_two_four():
    """Rows of errors for 2:4 compressed in the program, and once before."""
    yield from verify("cusparselt", js.NM(2, 4), ("bfloat16", "float16"), (384, 256), kept=True)


def verify(implementation, pattern, dtypes, shape, batches=(300, 7), kept=False):
    """Rows that tell the largest error of every product relative to what it summed."""
    for dtype, rows in itertools.product(dtypes, batches):
        packed, _ = draw(pattern, shape, 0.3, dtype)
        x, g = inputs(rows, shape, dtype)
        x64, g64, dense = (np.asarray(a, np.float64) for a in (x, g, packed.todense()))
        stored = np.asarray(packed.with_values(jnp.ones_like(packed.values)).todense())
        expected = {
            "forward": (x64 @ dense, np.abs(x64) @ np.abs(dense)),
            "dx": (g64 @ dense.T, np.abs(g64) @ np.abs(dense.T)),
            "dvalues": (np.where(stored, x64.T @ g64, 0), np.abs(x64.T) @ np.abs(g64)),
        }
        found = {
            direction: jax.jit(function)(*operands)
            for direction, (function, operands) in directions(packed, x, g, implementation).items()
        }
        found["dvalues"] = packed.with_values(found["dvalues"]).todense()
        if kept:
            found["kept"] = cusparselt.multiply(x, _compressed(packed), outputs=shape[1])
            expected["kept"] = expected["forward"]
        for direction, (right, scale) in expected.items():
            wrong = np.abs(np.asarray(found[direction], np.float64) - right)
            error = float(np.max(wrong) / np.max(scale))
            yield {
                "pattern": str(pattern),
                "direction": direction,
                "dtype": dtype,
                "rows": rows,
                "error": error,
                "right": error <= ERROR[dtype],  # a NaN is not
            }


# --- Triton --------------------------------------------------------------------------------------


def _triton_cell(cell):
    return "triton {} {} {} rows {} {}".format(*cell), lambda: measure_blocks(*cell)


def measure_blocks(block, density, shape, rows, direction, implementation="triton"):
    """Milliseconds of jnp.dot and of a product by blocks, in bfloat16."""
    packed, dense = draw(js.Block(*block), shape, density, "bfloat16")
    x, g = inputs(rows, shape, "bfloat16")
    full = jnp.asarray(dense, "bfloat16")
    plain = {
        "forward": (jnp.dot, (x, full)),
        "dx": (lambda g, w: jnp.dot(g, w.T), (g, full)),
        "dvalues": (lambda x, g: jnp.dot(x.T, g), (x, g)),
    }
    runs = {
        "jnp.dot": gpu.repeated(*plain[direction]),
        implementation: gpu.repeated(*directions(packed, x, g, implementation)[direction]),
    }
    cell = {"block": list(block), "density": density, "shape": list(shape), "rows": rows}
    return cell | {"direction": direction, "ms": _milliseconds(runs)}


def _milliseconds(runs):
    return {name: 1e3 * s / gpu.CALLS for name, s in seconds(runs).items()}


# --- 2:4 -----------------------------------------------------------------------------------------


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
    x, g = inputs(rows, shape, dtype)
    full = jnp.asarray(dense, dtype)
    runs = {
        "jnp.dot": gpu.repeated(jnp.dot, (x, full)),
        "shared columns": gpu.repeated(*directions(_shared(shape, dtype), x, g, "xla")["forward"]),
    }
    if kept:
        compressed = _compressed(packed)
        runs["cusparselt, compressing"] = gpu.repeated(
            *directions(packed, x, g, "cusparselt")["forward"]
        )
        for number in (None, *range(ALGORITHMS)):
            multiply = functools.partial(cusparselt.multiply, outputs=shape[1], algorithm=number)
            run = gpu.repeated(multiply, (x, compressed))
            try:
                jax.block_until_ready(run())
            except jax.errors.JaxRuntimeError:
                break  # the device has no algorithm of this number
            runs["cusparselt" if number is None else f"cusparselt, algorithm {number}"] = run
    return {"shape": list(shape), "rows": rows, "ms": _milliseconds(runs)}


def _shared(shape, dtype):
    """A weight of the same shape and sparsity whose columns keep the same inputs."""
    k, n = shape
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
    return _milliseconds(runs)
