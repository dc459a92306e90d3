"""Block-sparse product as work for the ring."""

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from jaxsparse.kernels.mosaic_gpu import configs, ring, schedule
from jaxsparse.kernels.mosaic_gpu.configs import Config
from jaxsparse.kernels.walks import Walk, pad_rows


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
            return y.at[pl.ds(first, config.wg_rows), pl.ds(strip * outputs, outputs)], 0, True

        if deal:
            order, bounds = dealt
            turns = schedule.dealt(order, bounds, grid[0], sm, sms)
        else:
            turns = schedule.near(grid, config.strip, sm, sms)
        return ring.Work(turns.count, turns.place, steps, fetch, multiply, destination)

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
