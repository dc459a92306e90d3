"""Block-sparse product and sampled product as work for the ring."""

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxsparse.kernels.pallas_gpu import configs, ring, schedule
from jaxsparse.kernels.pallas_gpu.configs import Config
from jaxsparse.kernels.tables import Walk, pad_rows


def product(
    x: jax.Array,
    values: jax.Array,
    walk: Walk,
    *,
    turned: bool,
    out_dtype,
    config: Config,
    sms: int,
    deal: bool,
) -> jax.Array:
    """y[:, strip j] = Σ x[:, source] @ values[slot] over the blocks of strip j.

    The blocks are (inputs, outputs), or (outputs, inputs) when `turned`; wgmma takes
    either of 16 bits, and of 8 bits only the latter. A step is `configs.depth` inputs
    of one block: a deeper block takes several.
    """
    rows = x.shape[0]
    x = pad_rows(x, config.tile_rows)
    inputs, outputs = values.shape[:0:-1] if turned else values.shape[1:]
    depth = configs.depth(inputs, x.dtype.itemsize)
    strips, parts = walk.starts.shape[0] - 1, inputs // depth
    grid = (x.shape[0] // config.tile_rows, strips)
    dealt = schedule.deal(jnp.diff(walk.starts) * parts, grid[0], sms) if deal else ()

    def work(starts, sources, slots, *rest):
        *dealt, x, values, y = rest
        sm = lax.axis_index("sm")

        def steps(tile):
            _, strip = tile
            return (starts[strip + 1] - starts[strip]) * parts

        def fetch(tile, step):
            row, strip = tile
            entry = starts[strip] + lax.div(step, jnp.int32(parts))
            part = lax.rem(step, jnp.int32(parts)) * depth
            across = pl.ds(part, depth)
            block = values.at[slots[entry] if turned else entry]
            return (
                x.at[
                    pl.ds(row * config.tile_rows, config.tile_rows),
                    pl.ds(sources[entry] * inputs + part, depth),
                ],
                block.at[:, across] if turned else block.at[across],
            )

        def multiply(accumulator, rows, block, warpgroup):
            own = rows.at[pl.ds(warpgroup * config.wg_rows, config.wg_rows)]
            plgpu.wgmma(accumulator, own, block.transpose((1, 0)) if turned else block)

        def destination(tile, warpgroup):
            row, strip = tile
            first = row * config.tile_rows + warpgroup * config.wg_rows
            return y.at[pl.ds(first, config.wg_rows), pl.ds(strip * outputs, outputs)], 0

        if deal:
            turns = schedule.dealt(*dealt, grid[0], sm, sms)
        else:
            turns = schedule.near(grid, config.strip, sm, sms)
        return ring.Work(*turns, steps, fetch, multiply, destination)

    y = ring.run(
        work,
        (*walk, *dealt, x, values),
        jax.ShapeDtypeStruct((x.shape[0], strips * outputs), out_dtype),
        stages=(
            (config.tile_rows, depth),
            (outputs, depth) if turned else (depth, outputs),
        ),
        tile=(config.wg_rows, outputs),
        config=config,
        sms=sms,
    )
    return y[:rows]


def sampled(
    x: jax.Array,
    g: jax.Array,
    stored: jax.Array,
    rows: jax.Array,
    cols: jax.Array,
    *,
    block: tuple[int, int],
    out_dtype,
    config: Config,
    splits: int,
    sms: int,
) -> jax.Array:
    """values[e] = x[:, rows[e]]ᵀ @ g[:, cols[e]] for e < stored[0], zero after.

    A tile is a block, a step `configs.depth` rows of the batch. Warpgroups share g and
    divide the block's inputs among them. wgmma has no fewer than 64 rows: a block of
    32 inputs is computed with 32 of its neighbours', which are not written.

    With `splits` above one, a tile is a block over that part of the batch, and the
    parts are summed afterwards, always in the same order.
    """
    (bk, bn), nnz = block, rows.shape[0]
    depth = configs.depth(configs.DEPTH, x.dtype.itemsize)
    x, g = pad_rows(x, depth), pad_rows(g, depth)
    whole = x.shape[0] // depth
    share = -(-whole // splits)  # of the steps; the last part may have fewer

    def work(stored, rows, cols, x, g, out):
        turns = schedule.in_turn(splits * nnz, lax.axis_index("sm"), sms)

        def place(turn):
            tile = turns.place(turn)
            return lax.div(tile, jnp.int32(nnz)), lax.rem(tile, jnp.int32(nnz))

        def before(entry):
            """Inputs that are computed ahead of a block's own, when it is the last."""
            if bk == config.tile_rows:
                return 0
            more = jnp.maximum(rows[entry] * bk + config.tile_rows - x.shape[1], 0)
            return pl.multiple_of(more, bk)

        def steps(tile):
            part, entry = tile
            mine = jnp.minimum(share, whole - part * share)
            return jnp.where(entry < stored[0], mine, 0)

        def fetch(tile, step):
            part, entry = tile
            batch = pl.ds((part * share + step) * depth, depth)
            inputs = pl.ds(rows[entry] * bk - before(entry), config.tile_rows)
            return x.at[batch, inputs], g.at[batch, pl.ds(cols[entry] * bn, bn)]

        def multiply(accumulator, inputs, outputs, warpgroup):
            own = inputs.at[:, pl.ds(warpgroup * config.wg_rows, config.wg_rows)]
            plgpu.wgmma(accumulator, own.transpose((1, 0)), outputs)

        def destination(tile, warpgroup):
            own = pl.ds(warpgroup * config.wg_rows, min(config.wg_rows, bk))
            return out.at[*tile, own], before(tile[1])

        return ring.Work(turns.count, place, steps, fetch, multiply, destination)

    parts = ring.run(
        work,
        (stored, rows, cols, x, g),
        jax.ShapeDtypeStruct((splits, nnz, bk, bn), jnp.float32 if splits > 1 else out_dtype),
        stages=((depth, config.tile_rows), (depth, bn)),
        tile=(config.wg_rows, bn),
        config=config,
        sms=sms,
        aligned=bk,
    )
    return jnp.sum(parts, axis=0).astype(out_dtype) if splits > 1 else parts[0]
