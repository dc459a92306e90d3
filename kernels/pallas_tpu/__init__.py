"""Block-sparse products on TPUs, in Pallas, their indices prefetched as scalars.

    product   y = x @ W,  or x @ Wᵀ by the same kernel contracting the other side
    sampled   the blocks of xᵀ @ g

Blocks whose sides are multiples of 128 up to 512, bfloat16 or float32 factors, sums
in float32. See `products` for how they run.

Available by name only (`implementation="pallas_tpu"`): interpreted, lowered and
exported, but not yet run on a TPU. No figure of its speed is known, so `sparse_dot`
never chooses it by itself.
"""

import jax.numpy as jnp
from jaxsparse.kernels import tables
from jaxsparse.kernels.layouts import BlockLayout

platforms = ("tpu",)
exportable = True

_LANES = 128
_WIDEST = 512
_DTYPES = ("bfloat16", "float32")


def missing() -> str | None:
    """The reason why these kernels cannot be lowered here: there is none."""
    return None


def unsupported(op, layout, x, values, out_dtype, transpose=False) -> str | None:
    """The reason why they cannot take a call, or None."""
    del transpose
    if not isinstance(layout, BlockLayout):
        return f"it takes blocks, not {type(layout).__name__}"
    if any(side % _LANES or side > _WIDEST for side in layout.block):
        return (
            f"block sides are multiples of {_LANES} up to {_WIDEST}, these blocks are "
            f"{layout.block}"
        )
    if layout.padded != layout.shape:
        return f"blocks of {layout.block} do not divide the weight of shape {layout.shape}"
    second = "g" if op == "sampled" else "values"
    if x.dtype != values.dtype or x.dtype.name not in _DTYPES:
        return f"x and {second} are both bfloat16 or both float32, not {x.dtype} and {values.dtype}"
    if jnp.dtype(out_dtype).name not in _DTYPES:
        return f"results are {' or '.join(_DTYPES)}, not {out_dtype}"
    return None


def product(x, values, *index, layout: BlockLayout, transpose: bool, out_dtype):
    """x (M, K) by W, or x (M, N) by Wᵀ when `transpose`, in `out_dtype`."""
    from jaxsparse.kernels.pallas_tpu import products

    if not x.shape[0] or not layout.nnz:
        return jnp.zeros((x.shape[0], layout.shape[0 if transpose else 1]), out_dtype)
    walk = tables.walk(*index, layout, transpose)
    return products.product(x, values, walk, transpose=transpose, out_dtype=out_dtype)


def sampled(x, g, *index, layout: BlockLayout, out_dtype):
    """xᵀ @ g for x (M, K) and g (M, N), only where the layout stores values."""
    from jaxsparse.kernels.pallas_tpu import products

    if not x.shape[0] or not layout.nnz:
        return jnp.zeros(layout.values_shape, out_dtype)
    indptr, rows = index
    cols = jnp.minimum(tables.columns(indptr, layout), layout.grid[1] - 1)
    return products.sampled(x, g, indptr[-1:], rows, cols, block=layout.block, out_dtype=out_dtype)
