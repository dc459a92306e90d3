"""Block-sparse products on TPUs, in Pallas, their indices prefetched as scalars.

    product   y = x @ W,  or x @ Wᵀ by the same kernel contracting the other side
    sampled   the blocks of xᵀ @ g

Blocks whose sides are multiples of 8 (float32), 16 (bfloat16) or 32 (int8 values) up
to 512; sides that are multiples of 128 need no transposed copy of x and y. Factors
are float32 or bfloat16, the weight's values also int8; sums are float32. See `tiles`
for what a step holds, `products` for how they run.

Available by name only (`implementation="pallas_tpu"`): interpreted, with races
watched for, lowered, exported and compiled for TPUs of every kind since the fourth,
but not yet run on one. No figure of its speed is known, so `sparse_dot` never chooses
it by itself.
"""

import jax.numpy as jnp

from jaxsparse.kernels import devices, walks
from jaxsparse.kernels.layouts import BlockLayout
from jaxsparse.kernels.pallas_tpu import tiles

platforms = ("tpu",)
exportable = True

_WIDEST = 512
_DTYPES = ("bfloat16", "float32")


def missing() -> str | None:
    """The reason why these kernels cannot be lowered here: there is none."""
    return None


def unsupported(op, layout, x, values, out_dtype, transpose=False) -> str | None:
    """The reason why they cannot take a call, or None."""
    if not isinstance(layout, BlockLayout):
        return f"it takes blocks, not {type(layout).__name__}"
    second = "g" if op == "sampled" else "values"
    quantized = op == "product" and values.dtype.name == "int8"
    if x.dtype.name not in _DTYPES or (values.dtype != x.dtype and not quantized):
        also = "" if op == "sampled" else " (or int8 values)"
        return (
            f"x and {second} are both bfloat16 or both float32{also}, not {x.dtype} and "
            f"{values.dtype}"
        )
    if jnp.dtype(out_dtype).name not in _DTYPES:
        return f"results are {' or '.join(_DTYPES)}, not {out_dtype}"
    unit = tiles.sublanes(x.dtype, values.dtype, out_dtype)
    if any(side % unit or side > _WIDEST for side in layout.block):
        return (
            f"block sides are multiples of {unit} up to {_WIDEST} for {x.dtype} x and "
            f"{values.dtype} {second}, these blocks are {layout.block}"
        )
    return _too_large(op, layout, x, values, out_dtype, transpose)


def _too_large(op, layout, x, values, out_dtype, transpose):
    kind = devices.tpu()
    if kind in ("TPU v2", "TPU v3"):  # 16 KiB for scalars
        return f"it needs a TPU v4 or later, this is a {kind}"
    tiling = _tiling(op, layout, x, values, out_dtype, transpose)
    if tiling is None:
        return f"a step on blocks of {layout.block} does not fit the VMEM of a {kind or 'TPU v4'}"
    used = tiles.scalars(op, layout.grid, layout.nnz, tiling.blocks)
    if used > devices.SMEM:
        return (
            f"the indices of {layout.nnz} blocks take {used} bytes of scalar memory, there is room "
            f"for {devices.SMEM}: larger blocks have fewer"
        )
    return None


def _tiling(op, layout, x, values, out_dtype, transpose=False):
    turn = slice(None, None, -1 if transpose else 1)
    return tiles.heuristic(
        op,
        layout.block[turn],
        layout.padded[turn],
        x.shape[0],
        layout.nnz,
        (x.dtype, values.dtype, out_dtype),
        devices.tpu(),
    )


def product(x, values, *index, layout: BlockLayout, transpose: bool, out_dtype):
    """x (M, K) by W, or x (M, N) by Wᵀ when `transpose`, in `out_dtype`."""
    from jaxsparse.kernels.pallas_tpu import products

    tiling = _tiling("product", layout, x, values, out_dtype, transpose)
    assert tiling, "`unsupported` would have said so"
    walk = walks.walk(index, layout, transpose)
    source, target = (1, 0) if transpose else (0, 1)
    x = layout.reach(x, source)
    y = products.product(x, values, walk, transpose=transpose, out_dtype=out_dtype, tiling=tiling)
    return y[:, : layout.shape[target]]


def sampled(x, g, *index, layout: BlockLayout, out_dtype):
    """xᵀ @ g for x (M, K) and g (M, N), only where the layout stores values."""
    from jaxsparse.kernels.pallas_tpu import products

    tiling = _tiling("sampled", layout, x, g, out_dtype)
    assert tiling, "`unsupported` would have said so"
    x, g = layout.reach(x, 0), layout.reach(g, 1)
    indptr, rows = index
    cols = jnp.minimum(layout.columns_of(indptr), layout.grid[1] - 1)
    return products.sampled(
        x, g, indptr[-1:], rows, cols, block=layout.block, out_dtype=out_dtype, tiling=tiling
    )
