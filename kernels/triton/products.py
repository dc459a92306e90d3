"""Calls of the Triton kernels: how a product is cut, and what is passed."""

import math
from typing import Any, NamedTuple

import jax
import jax_triton  # pyright: ignore[reportMissingImports]

from jaxsparse.kernels.triton import kernels
from jaxsparse.kernels.walks import Walk


class Launch(NamedTuple):
    """How often a kernel runs, and its compile-time arguments.

    Attributes:
      grid: programs.
      constants: the kernel's constexpr arguments.
      options: warps of a program, and steps of its loop in flight.
    """

    grid: int
    constants: dict[str, Any]
    options: dict[str, int]


def product_launch(rows, source, target, block, transpose, dtype) -> Launch:
    """Cuts x (rows, source) @ blocks -> y (rows, target); `block` is (inputs, outputs).

    The widest tile that the rows fill, up to 128 or, of float32, 64. Three steps in
    flight are at most 96 KiB, which every device from Ampere on has.
    """
    inputs, outputs = block
    widest = 256 // dtype.itemsize  # three passes of TF32 need registers for both parts
    tile = min(widest, max(16, 1 << (rows - 1).bit_length()))
    constants = {
        "SOURCE": source,
        "TARGET": target,
        "INPUTS": inputs,
        "OUTPUTS": outputs,
        "TRANSPOSE": transpose,
        "TILE": tile,
        "DEPTH": min(inputs, _depth(dtype)),
        "GROUP": 8,
        "PRECISION": _precision(dtype),
    }
    grid = -(-rows // tile) * (target // outputs)
    return Launch(grid, constants, _options(tile * outputs, dtype))


def sampled_launch(nnz, source, target, block, dtype) -> Launch:
    """Cuts xᵀ @ g into its nnz blocks."""
    constants = {
        "SOURCE": source,
        "TARGET": target,
        "INPUTS": block[0],
        "OUTPUTS": block[1],
        "DEPTH": _depth(dtype),
        "PRECISION": _precision(dtype),
    }
    return Launch(nnz, constants, _options(math.prod(block), dtype))


def _depth(dtype) -> int:
    return 128 // dtype.itemsize


def _precision(dtype) -> str:
    return "tf32x3" if dtype.itemsize == 4 else "ieee"


def _options(tile: int, dtype) -> dict[str, int]:
    return {"num_warps": 8 if tile * dtype.itemsize >= 128 * 128 * 2 else 4, "num_stages": 3}


def product(
    x: jax.Array, values: jax.Array, walk: Walk, *, transpose, out_dtype, capability: int
) -> jax.Array:
    """y[:, strip j] = Σ x[:, source] @ values[slot] over the blocks of strip j."""
    block = values.shape[:0:-1] if transpose else values.shape[1:]
    rows, source = x.shape
    target = (walk.starts.shape[0] - 1) * block[1]
    launch = product_launch(rows, source, target, block, transpose, x.dtype)
    operands = (*walk, x, values, rows)
    return _call(kernels.product, launch, operands, (rows, target), out_dtype, capability)


def sampled(
    x: jax.Array,
    g: jax.Array,
    stored: jax.Array,
    rows: jax.Array,
    cols: jax.Array,
    *,
    block: tuple[int, int],
    out_dtype,
    capability: int,
) -> jax.Array:
    """values[e] = x[:, rows[e]]ᵀ @ g[:, cols[e]] for e < stored[0], zero after."""
    nnz = rows.shape[0]
    launch = sampled_launch(nnz, x.shape[1], g.shape[1], block, x.dtype)
    operands = (stored, rows, cols, x, g, x.shape[0])
    return _call(kernels.sampled, launch, operands, (nnz, *block), out_dtype, capability)


def _call(kernel, launch: Launch, operands, shape, dtype, capability) -> jax.Array:
    return jax_triton.triton_call(
        *operands,
        kernel=kernel,
        out_shape=jax.ShapeDtypeStruct(shape, dtype),
        grid=launch.grid,
        name=f"jaxsparse_{kernel.fn.__name__}",
        compute_capability=capability,
        **launch.options,
        **launch.constants,
    )
