"""Block-sparse and 2:4 products on NVIDIA Hopper, in Pallas's Mosaic GPU.

    product   y = x @ W,  or x @ Wᵀ by the same kernel with blocks turned   `products`
    sampled   the blocks of xᵀ @ g                                          `sampling`
    product   y = x @ W for W of 2:4 and few rows                           `decode`

Blocks with sides of 32, 64 or 128. Factors of 16 bits, and for the product also of 8:

    bfloat16, float16        summed in float32
    float8_e4m3fn            summed by the hardware in a little less than float32
    int8 by int8             summed in int32
    16 bits by int8 values   which XLA widens before, exactly

wgmma takes factors of 8 bits only with what is summed over contiguous. The blocks of a
transposed product lie so; those of x @ W are turned by XLA before, the values once more
through memory. A sampled product sums over the batch, which is never contiguous. A
block 32 wide is 32 deep steps or a tile 32 wide: wgmma takes both, and it is what they
make x travel that bounds their rate, not the multiplying.

Available by name only (`implementation="mosaic_gpu"`): interpreted, with races
watched for, lowered, exported and compiled for the device, but not yet run on one.
No figure of its speed is known, so `sparse_dot` never chooses it by itself.
"""

import dataclasses

import jax
import jax.numpy as jnp

from jaxsparse.kernels import devices, walks
from jaxsparse.kernels.layouts import BlockLayout, NMLayout
from jaxsparse.kernels.mosaic_gpu import configs, limits

platforms = ("cuda",)
exportable = True


def missing() -> str | None:
    """The reason why these kernels cannot be lowered here, or None."""
    if jax.__version_info__ < (0, 11):
        return f"it needs jax 0.11 or later, this is {jax.__version__}"
    return None


def unsupported(op, layout, x, values, out_dtype, transpose=False) -> str | None:
    """The reason why they cannot take a call, or None."""
    if isinstance(layout, BlockLayout):
        reason = limits.blocks(op, layout, x, values, out_dtype)
    elif isinstance(layout, NMLayout):
        reason = limits.groups(op, layout, x, values, out_dtype, transpose)
    else:
        reason = f"it takes blocks and 2:4, not {type(layout).__name__}"
    return reason or devices.gpu_lacks(9, "Hopper", later=False)


def product(x, values, *index, layout: BlockLayout | NMLayout, transpose: bool, out_dtype):
    """x (M, K) by W, or x (M, N) by Wᵀ when `transpose`, in `out_dtype`."""
    from jaxsparse.kernels.mosaic_gpu import decode, products, schedule

    rows = x.shape[0]
    kind, sms = devices.multiprocessors()
    if isinstance(layout, NMLayout):
        return decode.product(x, values, *index, layout=layout, out_dtype=out_dtype, sms=sms)
    values = values.astype(x.dtype)
    in_bytes, out_bytes = x.dtype.itemsize, jnp.dtype(out_dtype).itemsize
    turned = transpose
    if in_bytes == 1 and not transpose:
        values, turned = values.swapaxes(1, 2), True
    bk, bn = layout.block
    block = (bn, bk) if transpose else (bk, bn)
    config = configs.configure("product", block, rows, out_bytes, kind, in_bytes)
    strips = layout.grid[0 if transpose else 1]
    steps = layout.nnz * (block[0] // configs.depth(block[0], in_bytes))
    return products.product(
        x,
        values,
        walks.walk(index, layout, transpose),
        turned=turned,
        out_dtype=out_dtype,
        config=config,
        sms=sms,
        deal=schedule.pays(steps, -(-rows // config.tile_rows), strips, sms),
    )


def sampled(x, g, *index, layout: BlockLayout, out_dtype):
    """xᵀ @ g for x (M, K) and g (M, N), only where the layout stores values."""
    from jaxsparse.kernels.mosaic_gpu import sampling

    kind, sms = devices.multiprocessors()
    config = configs.configure("sampled", layout.block, x.shape[0], 4, kind)
    mean = -(-layout.nnz // layout.grid[1])  # a column with fewer blocks wastes what is over
    config = dataclasses.replace(config, warpgroups=min(config.warpgroups, mean))
    depth = configs.depth(configs.DEPTH, x.dtype.itemsize)
    tiles = -(-layout.nnz // config.warpgroups)
    splits = configs.splits(tiles, -(-x.shape[0] // depth), sms)
    return sampling.sampled(
        x, g, *index, layout=layout, out_dtype=out_dtype, config=config, splits=splits, sms=sms
    )
