"""What else multiplies on a GPU: Triton's blocks, 2:4 by cuSPARSELt, and torch's sparse.

Part of `make gpu`, on NVIDIA GPUs from Ampere on. What is not installed is left out with
its reason. Dense products run in turn with what they are compared with: jnp.dot beside
JAX's, torch's own beside torch's.
"""

import functools
import itertools

import jax
import numpy as np

import jaxsparse as js
from experiments.bench import accelerator, accelerator_inputs
from experiments.bench.accelerator import Cell, Check
from experiments.bench.accelerator_inputs import DIRECTIONS, HALVES
from jaxsparse.kernels.cusparselt import products as cusparselt

TRITON, CUSPARSELT, TORCH = "triton", "cusparselt", "torch"
TWO_OF_FOUR = js.NM(2, 4)
SHAPES = [((4096, 4096), 8192), ((4096, 14336), 4096), ((8192, 8192), 8192)]
BLOCKS = [js.Block(side, side) for side in (128, 64, 32, 16)]
FACTORS = (*HALVES, "float32")
HALF = "bfloat16"  # what is measured
BLOCK_CELLS = [
    Cell(block, HALF, 0.25, (4096, 4096), 8192, direction)
    for block, direction in itertools.product(BLOCKS, DIRECTIONS)
]
BSR_CELLS = [(64, density) for density in (0.5, 0.1)]  # of torch, on the first shape
ALGORITHMS = 8  # of cuSPARSELt, tried beside its own choice


def here() -> accelerator.Others:
    """What of all this can run, and the reasons for what cannot."""
    reasons = {
        TRITON: accelerator.unavailable(TRITON, BLOCKS[0]),
        CUSPARSELT: accelerator.unavailable(CUSPARSELT, TWO_OF_FOUR),
        TORCH: torch_missing(),
    }
    absent = {name: reason for name, reason in reasons.items() if reason}
    return accelerator.Others(
        absent, functools.partial(verify, absent), functools.partial(measure, absent)
    )


def block_checks():
    """Triton's blocks, whole and ragged batches."""
    for block, dtype, rows in itertools.product(BLOCKS, FACTORS, (300, 7)):
        yield Check(block, dtype, (384, 256), rows)


def group_checks():
    """2:4, whole and ragged batches."""
    for dtype, rows in itertools.product(HALVES, (300, 7)):
        yield Check(TWO_OF_FOUR, dtype, (384, 256), rows)


def verify(absent):
    """Rows of errors of Triton's blocks, and of 2:4 compressed in the program and before."""
    if TRITON not in absent:
        yield from accelerator.verify(TRITON, block_checks())
    if CUSPARSELT not in absent:
        yield from accelerator.verify(CUSPARSELT, group_checks())
        forward = [check._replace(directions=("forward",)) for check in group_checks()]
        name = f"{CUSPARSELT}, compressed before"
        yield from accelerator.verify(name, forward, compressed_before)


def measure(absent, deadline):
    """Rows with milliseconds by name until `deadline`, and why which are missing."""
    rows, missing = [], {}
    if TRITON not in absent:
        rows, missing = accelerator.table(TRITON, deadline, BLOCK_CELLS)
    wanted = {}
    if CUSPARSELT not in absent:
        wanted |= {f"2:4 {c[0]} rows {c[1]}": functools.partial(two_four, *c) for c in SHAPES}
    if TORCH not in absent:
        wanted |= torch_cells()

    def row_of(label):
        row = wanted[label]()
        times = (f"{name} {ms:.3f} ms" for name, ms in row["times_ms"].items())
        print(f"{label}: {', '.join(times)}", flush=True)
        return row

    more, more_missing = accelerator.until(deadline, wanted, row_of)
    return [*rows, *more], missing | more_missing


# --- cuSPARSELt ----------------------------------------------------------------------------------


def _compressed(packed):
    return jax.jit(lambda p: cusparselt.compress(p.values, *p.index, layout=packed.layout))(packed)


def compressed_before(packed, x, g):
    """x @ W by a form of W that was made before the program."""
    del g
    multiply = functools.partial(cusparselt.multiply, outputs=packed.shape[1])
    return {"forward": (multiply, (x, _compressed(packed)))}


def two_four(shape, rows):
    """Milliseconds of jnp.dot, of the form whose columns share their positions, and of cuSPARSELt.

    cuSPARSELt's is timed with the weight compressed in every call, and once before: by
    its own choice of algorithm and by each of the first few.
    """
    packed = accelerator_inputs.weight(TWO_OF_FOUR, shape, 0.5, HALF)
    x, g = accelerator_inputs.inputs(rows, shape, HALF)

    def forward(packed, implementation):
        products = accelerator_inputs.directions(packed, x, g, implementation)
        return accelerator.repeated(*products["forward"])

    runs = {
        "jnp.dot": accelerator.dense_run(shape, rows, "forward"),
        "shared columns": forward(_shared(shape), "xla"),
        "cusparselt, compressing": forward(packed, CUSPARSELT),
    }
    compressed = _compressed(packed)
    for number in (None, *range(ALGORITHMS)):
        multiply = functools.partial(cusparselt.multiply, outputs=shape[1], algorithm=number)
        run = accelerator.repeated(multiply, (x, compressed))
        try:
            jax.block_until_ready(run())
        except jax.errors.JaxRuntimeError:
            break  # the device has no algorithm of this number
        runs["cusparselt" if number is None else f"cusparselt, algorithm {number}"] = run
    cell = {"implementation": CUSPARSELT, "shape": list(shape), "rows": rows}
    return cell | {"times_ms": accelerator.milliseconds(runs)}


def _shared(shape):
    """A weight of the same shape and sparsity whose columns keep the same inputs."""
    k, n = shape
    mask = np.broadcast_to((np.arange(k) % 4 < 2)[:, None], (k, n))
    values = np.random.default_rng(2).standard_normal((k, n), np.float32)
    return js.pack(values, TWO_OF_FOUR, mask, dtype=HALF, columns=n)


# --- torch ---------------------------------------------------------------------------------------


def torch_missing() -> str | None:
    """Why torch cannot multiply on a GPU here, or None."""
    try:
        import torch  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        return f"it is not installed ({error})"
    return None if torch.cuda.is_available() else f"torch {torch.__version__} sees no GPU"


def torch_cells():
    """By label, cells of torch: 2:4 by its cuSPARSELt and its CUTLASS, and blocks as BSR."""
    cells = {
        f"torch 2:4 {shape} rows {rows}": functools.partial(torch_two_four, shape, rows)
        for shape, rows in SHAPES
    }
    shape, rows = SHAPES[0]
    for side, density in BSR_CELLS:
        label = f"torch BSR {side}x{side} density {density} {shape} rows {rows}"
        cells[label] = functools.partial(torch_blocks, shape, rows, side, density)
    return cells


def torch_two_four(shape, rows):
    """Milliseconds of torch's linear layer, dense and semi-structured."""
    from torch.sparse import (  # pyright: ignore[reportMissingImports]
        SparseSemiStructuredTensorCUSPARSELT,
        SparseSemiStructuredTensorCUTLASS,
    )

    packed = accelerator_inputs.weight(TWO_OF_FOUR, shape, 0.5, HALF)
    forms = {
        "torch": lambda weight: weight,
        "torch 2:4 cusparselt": SparseSemiStructuredTensorCUSPARSELT.from_dense,
        "torch 2:4 cutlass": SparseSemiStructuredTensorCUTLASS.from_dense,
    }
    cell = {"implementation": TORCH, "shape": list(shape), "rows": rows}
    return cell | {"times_ms": _torch_times(packed, forms, rows)}


def torch_blocks(shape, rows, side, density):
    """Milliseconds of torch's linear layer, dense and in blocks."""
    packed = accelerator_inputs.weight(js.Block(side, side), shape, density, HALF)
    forms = {
        "torch": lambda weight: weight,
        "torch BSR": lambda weight: weight.to_sparse_bsr((side, side)),
    }
    cell = {"implementation": TORCH, "shape": list(shape), "rows": rows}
    cell |= {"block": [side, side], "density": density}
    return cell | {"times_ms": _torch_times(packed, forms, rows)}


def _torch_times(packed, forms, rows):
    """Milliseconds of every form of a weight that torch has kernels for."""
    import torch  # pyright: ignore[reportMissingImports]

    dense = np.ascontiguousarray(np.asarray(accelerator_inputs.dense(packed)).T)
    weight = torch.tensor(dense, dtype=torch.bfloat16, device="cuda")
    x = torch.randn(rows, packed.shape[0], dtype=torch.bfloat16, device="cuda")

    def run(weight):
        for _ in range(accelerator.CALLS):
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
    return accelerator.milliseconds(runs)
