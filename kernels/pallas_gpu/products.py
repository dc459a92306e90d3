"""Block-sparse product and sampled product as work for the ring."""

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxsparse.kernels.pallas_gpu import ring
from jaxsparse.kernels.pallas_gpu.configs import DEPTH, Config
from jaxsparse.kernels.tables import Walk, pad_rows


def product(
    x: jax.Array, values: jax.Array, walk: Walk, *, transpose, out_dtype, config: Config, sms: int
) -> jax.Array:
    """y[:, strip j] = Σ x[:, source] @ values[slot] over the blocks of strip j.

    A step is `DEPTH` inputs of one block: a wide block takes several. A transposed
    product reads the same block and turns it on its way into wgmma.
    """
    rows = x.shape[0]
    x = pad_rows(x, config.tile_rows)
    inputs, outputs = values.shape[:0:-1] if transpose else values.shape[1:]
    strips, parts = walk.starts.shape[0] - 1, inputs // DEPTH
    grid = (x.shape[0] // config.tile_rows, strips)

    def work(starts, sources, slots, x, values, y):
        def place(number):
            return plgpu.planar_snake(number, grid, 0, config.strip)

        def steps(tile):
            _, strip = tile
            return (starts[strip + 1] - starts[strip]) * parts

        def fetch(tile, step):
            row, strip = tile
            entry = starts[strip] + lax.div(step, jnp.int32(parts))
            part = lax.rem(step, jnp.int32(parts)) * DEPTH
            across = pl.ds(part, DEPTH)
            block = values.at[slots[entry] if transpose else entry]
            return (
                x.at[
                    pl.ds(row * config.tile_rows, config.tile_rows),
                    pl.ds(sources[entry] * inputs + part, DEPTH),
                ],
                block.at[:, across] if transpose else block.at[across],
            )

        def multiply(accumulator, rows, block, warpgroup):
            own = rows.at[pl.ds(warpgroup * config.wg_rows, config.wg_rows)]
            plgpu.wgmma(accumulator, own, block.transpose((1, 0)) if transpose else block)

        def destination(tile, warpgroup):
            row, strip = tile
            first = row * config.tile_rows + warpgroup * config.wg_rows
            return y.at[pl.ds(first, config.wg_rows), pl.ds(strip * outputs, outputs)]

        return ring.Work(grid[0] * grid[1], place, steps, fetch, multiply, destination)

    y = ring.run(
        work,
        (*walk, x, values),
        jax.ShapeDtypeStruct((x.shape[0], strips * outputs), out_dtype),
        stages=(
            (config.tile_rows, DEPTH),
            (outputs, DEPTH) if transpose else (DEPTH, outputs),
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
    sms: int,
) -> jax.Array:
    """values[e] = x[:, rows[e]]ᵀ @ g[:, cols[e]] for e < stored[0], zero after.

    A tile is a block, a step `DEPTH` rows of the batch. Warpgroups share g and
    divide the block's inputs among them.
    """
    (bk, bn), nnz = block, rows.shape[0]
    x, g = pad_rows(x, DEPTH), pad_rows(g, DEPTH)
    depth = x.shape[0] // DEPTH

    def work(stored, rows, cols, x, g, out):
        def steps(entry):
            return jnp.where(entry < stored[0], depth, 0)

        def fetch(entry, step):
            batch = pl.ds(step * DEPTH, DEPTH)
            return x.at[batch, pl.ds(rows[entry] * bk, bk)], g.at[
                batch, pl.ds(cols[entry] * bn, bn)
            ]

        def multiply(accumulator, inputs, outputs, warpgroup):
            own = inputs.at[:, pl.ds(warpgroup * config.wg_rows, config.wg_rows)]
            plgpu.wgmma(accumulator, own.transpose((1, 0)), outputs)

        def destination(entry, warpgroup):
            return out.at[entry, pl.ds(warpgroup * config.wg_rows, config.wg_rows)]

        return ring.Work(nnz, lambda entry: entry, steps, fetch, multiply, destination)

    return ring.run(
        work,
        (stored, rows, cols, x, g),
        jax.ShapeDtypeStruct((nnz, bk, bn), out_dtype),
        stages=((DEPTH, bk), (DEPTH, bn)),
        tile=(config.wg_rows, bn),
        config=config,
        sms=sms,
    )
