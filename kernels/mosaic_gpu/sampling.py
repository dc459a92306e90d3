"""Sampled product by blocks, xᵀ @ g where W stores, as work for the ring.

A tile is a group of consecutive blocks of one block column, one for each warpgroup that
multiplies: they share what they read of g, which is most of what bounds the rate. A step
is `configs.depth` rows of the batch. wgmma has no fewer than 64 rows:

    64 or 128 inputs   x's part is the first factor, g's the second
    32 inputs          the other way round; the blocks come out turned, and where they
                       are 32 wide too, with 32 of their neighbours' outputs, not written
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, Int

from jaxsparse.kernels.layouts import BlockLayout
from jaxsparse.kernels.mosaic_gpu import configs, ring, schedule
from jaxsparse.kernels.mosaic_gpu.configs import Config
from jaxsparse.kernels.walks import pad_rows


class Groups(NamedTuple):
    """Blocks firsts[t] to lasts[t] of column cols[t] are one tile.

    The column after the last stands for room to spare, whose blocks are zero; groups
    beyond the last have no blocks.
    """

    cols: Int[Array, "tiles"]
    firsts: Int[Array, "tiles"]
    lasts: Int[Array, "tiles"]


def groups(indptr: Int[Array, "..."], layout: BlockLayout, size: int) -> Groups:
    """Divides every column into groups of at most `size`."""
    bounds = jnp.concatenate([indptr, jnp.full(1, layout.nnz, jnp.int32)])
    ends = jnp.cumsum(-(-jnp.diff(bounds) // size), dtype=jnp.int32)
    numbers = jnp.arange(count(layout, size), dtype=jnp.int32)
    cols = jnp.sum(ends <= numbers[:, None], axis=1, dtype=jnp.int32)
    within = numbers - jnp.where(cols > 0, ends[jnp.maximum(cols, 1) - 1], 0)
    firsts = bounds[cols] + within * size
    stops = bounds[jnp.minimum(cols + 1, layout.grid[1] + 1)]
    return Groups(cols, firsts, jnp.minimum(firsts + size, stops) - 1)


def count(layout: BlockLayout, size: int) -> int:
    """The most groups there can be: every column's last may hold one block only."""
    columns = min(layout.grid[1] + 1, layout.nnz)
    return (layout.nnz + columns * (size - 1)) // size


def sampled(
    x: jax.Array,
    g: jax.Array,
    indptr: jax.Array,
    rows: jax.Array,
    *,
    layout: BlockLayout,
    out_dtype,
    config: Config,
    splits: int,
    sms: int,
) -> jax.Array:
    """values[e] = x[:, rows[e]]ᵀ @ g[:, cols[e]] for e < indptr[-1], zero after.

    With `splits` above one, a tile is a group over that part of the batch, and the parts
    are summed afterwards, always in the same order.
    """
    (bk, bn), nnz, size = layout.block, layout.nnz, config.warpgroups
    depth = configs.depth(configs.DEPTH, x.dtype.itemsize)
    x, g = pad_rows(x, depth), pad_rows(g, depth)
    whole = x.shape[0] // depth
    share = -(-whole // splits)  # of the steps; the last part may have fewer
    turned, tile = bk < configs.LEAST, configs.sampled_tile(layout.block)
    wide = tile[0] if turned else bn  # of g, in a step
    tiles = count(layout, size)

    def work(cols, firsts, lasts, rows, x, g, out):
        turns = schedule.in_turn(splits * tiles, lax.axis_index("sm"), sms)

        def place(turn):
            number = turns.place(turn)
            return lax.div(number, jnp.int32(tiles)), lax.rem(number, jnp.int32(tiles))

        def before(group):
            """Outputs that are computed ahead of a block's own, when it is the last."""
            if wide == bn:
                return 0
            column = jnp.minimum(cols[group], layout.grid[1] - 1)
            return pl.multiple_of(jnp.maximum(column * bn + wide - g.shape[1], 0), bn)

        def steps(tile):
            part, group = tile
            mine = jnp.minimum(share, whole - part * share)
            return jnp.where(cols[group] < layout.grid[1], mine, 0)

        def fetch(tile, step):
            part, group = tile
            batch = pl.ds((part * share + step) * depth, depth)
            outputs = g.at[batch, pl.ds(cols[group] * bn - before(group), wide)]
            # Where a group is short, its last block is multiplied more than once.
            entries = [jnp.minimum(firsts[group] + n, lasts[group]) for n in range(size)]
            inputs = [x.at[batch, pl.ds(rows[entry] * bk, bk)] for entry in entries]
            return (outputs, inputs) if turned else (inputs, outputs)

        def multiply(accumulator, first, second, warpgroup):
            if turned:
                second = second.at[warpgroup]
            else:
                first = first.at[warpgroup]
            plgpu.wgmma(accumulator, first.transpose((1, 0)), second)

        def destination(tile, warpgroup):
            part, group = tile
            entry = firsts[group] + warpgroup
            return out.at[part, entry], before(group), entry <= lasts[group]

        return ring.Work(turns.count, place, steps, fetch, multiply, destination)

    stages = (size, depth, bk), (depth, wide)
    shape = (splits, nnz, bn, bk) if turned else (splits, nnz, bk, bn)
    parts = ring.run(
        work,
        (*groups(indptr, layout, size), rows, x, g),
        jax.ShapeDtypeStruct(shape, jnp.float32 if splits > 1 else out_dtype),
        stages=(stages[1], stages[0]) if turned else stages,
        tile=tile,
        config=config,
        sms=sms,
        aligned=min(bk, bn),
    )
    values = jnp.sum(parts, axis=0).astype(out_dtype) if splits > 1 else parts[0]
    return values.swapaxes(1, 2) if turned else values
