"""2:4 weights by few rows of x: compressed weights read once, spread out on the chip.

    yᵀ = Wᵀ xᵀ: weights are wgmma's first factor, and x's rows its short second side

A word of positions covers 8 groups, 32 inputs, of one output. With words w down and
outputs n across, group f of each of them is two rows of values and one shift away from
its positions, so that all of it is elementwise:

    A_p[w, n] = values[2f, n] where position 2f is p, + values[2f+1, n] where 2f+1 is,

the weights of the inputs 32w + 4f + p. x is put in that order before, a copy of few
rows. A step is 64 rows of such arrays: 64 words and one f, or fewer words and several
f's, where K does not divide into more. The spread weights go through shared memory,
where wgmma reads them turned.

Reads 1.125 bytes per weight of 16 bits where a dense product reads 2. Values of 8 bits
are widened in registers: 0.625 bytes.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from jaxsparse.kernels.mosaic_gpu import schedule
from jaxsparse.kernels.mosaic_gpu.decode_config import GROUPS, KEPT, PLACES, SIDE, Cut, cut
from jaxsparse.kernels.mosaic_gpu.ring import LOADER_REGISTERS, REGISTERS, shared


def arrange(x: jax.Array, cut: Cut) -> jax.Array:
    """x (rows, K) as (rows of steps, SIDE): for each step and place, rows by inputs."""
    rows = x.shape[0]
    x = x.reshape(rows, -1, cut.words, cut.phases, cut.groups, PLACES)
    return x.transpose(1, 3, 5, 0, 4, 2).reshape(-1, SIDE)


def product(x: jax.Array, values: jax.Array, words: jax.Array, *, layout, out_dtype, sms):
    """y = x @ W for x (rows, K) of at most SIDE rows, W two of every four inputs."""
    rows = x.shape[0]
    x = jnp.pad(x, ((0, -rows % 8), (0, 0)))
    across = layout.shape[1]
    by = cut(layout, x.shape[0], values.dtype.itemsize, sms)
    values = values.reshape(words.shape[0], KEPT * GROUPS, across)
    parts = _run(arrange(x, by), values, words, rows=x.shape[0], by=by, sms=sms)
    return jnp.sum(parts, axis=0)[:, :rows].T.astype(out_dtype)


class Buffers(NamedTuple):
    """Shared memory and the barriers over it.

    Attributes:
      x, values: of a step, in a ring: `filled` by the loader, `drained` by the others.
      words: of as many steps as they last: `arrived`, then `taken` to registers.
      spread: two steps' weights of one place, for each warpgroup.
    """

    x: Any
    values: Any
    words: Any
    spread: Any
    filled: Any
    drained: Any
    arrived: Any
    taken: Any


class Tile(NamedTuple):
    """Outputs from `column` on, over the words from `first` to before `last`."""

    column: Any
    part: Any
    first: Any
    last: Any


def _run(x, values, words, *, rows, by: Cut, sms):
    """The kernel: parts of yᵀ, of shape (splits, N, rows)."""
    depth, across = words.shape[0] // by.words, words.shape[1]
    width = SIDE * by.warpgroups
    tiles = across // width
    share = -(-depth // by.splits)

    def kernel(x, values, words, out):
        turns = schedule.in_turn(tiles * by.splits, lax.axis_index("sm"), sms)

        def place(turn):
            number = turns.place(turn)
            part = lax.div(number, jnp.int32(tiles))
            column = lax.rem(number, jnp.int32(tiles)) * width
            return Tile(column, part, part * share, jnp.minimum((part + 1) * share, depth))

        def scope(*buffers):
            held, warpgroup = Buffers(*buffers), lax.axis_index("wg")

            @pl.when(warpgroup == by.warpgroups)
            def _():
                plgpu.set_max_registers(LOADER_REGISTERS, action="decrease")
                _load(turns._replace(place=place), (x, values, words), held, rows, by)

            @pl.when(warpgroup < by.warpgroups)
            def _():
                most = min(240, (REGISTERS - LOADER_REGISTERS) // by.warpgroups)
                plgpu.set_max_registers(most // 8 * 8, action="increase")
                _multiply(turns._replace(place=place), out, held, rows, by)

        own_swizzle = min(128, SIDE * values.dtype.itemsize)  # a warpgroup reads its own side
        pl.run_scoped(
            scope,
            shared((by.stages, PLACES * rows, SIDE), x.dtype),
            shared((by.stages, KEPT, SIDE, width), values.dtype, own_swizzle),
            shared((SIDE, width), words.dtype),
            shared((by.warpgroups, 2, SIDE, SIDE), x.dtype),
            plgpu.Barrier(num_arrivals=1 + KEPT * by.groups, num_barriers=by.stages),
            plgpu.Barrier(num_arrivals=by.warpgroups, num_barriers=by.stages),
            plgpu.Barrier(num_arrivals=by.groups, num_barriers=1),
            plgpu.Barrier(num_arrivals=by.warpgroups, num_barriers=1),
            collective_axes="wg",
        )

    semantics = plgpu.LoweringSemantics.Warpgroup
    return plgpu.kernel(
        kernel,
        out_type=jax.ShapeDtypeStruct((by.splits, across, rows), jnp.float32),
        grid=(sms,),
        grid_names=("sm",),
        num_threads=by.warpgroups + 1,
        thread_name="wg",
        compiler_params=plgpu.CompilerParams(lowering_semantics=semantics),
    )(x, values, words)


def _load(turns, operands, held: Buffers, rows, by: Cut):
    """The loading warpgroup: the words of every tile, and of each their steps."""
    x, values, words = operands
    groups = [pl.ds(group * by.words, by.words) for group in range(by.groups)]
    high = PLACES * rows

    def load_tile(turn, carry):
        tile = turns.place(turn)
        columns = pl.ds(tile.column, SIDE * by.warpgroups)

        def load_words(word, carry):
            step, loaded = carry
            down = pl.ds(word * by.words, by.words)

            @pl.when(loaded > 0)
            def _():
                plgpu.barrier_wait(held.taken.at[0])

            for own in groups:
                source = words.at[down, columns]
                plgpu.copy_gmem_to_smem(source, held.words.at[own], held.arrived.at[0])

            def load_step(phase, step):
                slot = lax.rem(step, jnp.int32(by.stages))
                filled = held.filled.at[slot]

                @pl.when(step >= by.stages)
                def _():
                    plgpu.barrier_wait(held.drained.at[slot])

                source = x.at[pl.ds((word * by.phases + phase) * high, high)]
                plgpu.copy_gmem_to_smem(source, held.x.at[slot], filled)
                for group, own in enumerate(groups):
                    for i in range(KEPT):
                        row = (phase * by.groups + group) * KEPT + i
                        source = values.at[down, row, columns]
                        plgpu.copy_gmem_to_smem(source, held.values.at[slot, i, own], filled)
                return step + 1

            return lax.fori_loop(0, by.phases, load_step, step), loaded + 1

        return lax.fori_loop(tile.first, tile.last, load_words, carry)

    start = jnp.int32(0), jnp.int32(0)
    steps, loaded = lax.fori_loop(0, turns.count, load_tile, start)

    # No barrier is left with an arrival that nobody waited for.
    @pl.loop(lax.max(steps - by.stages, 0), steps)
    def _(step):
        plgpu.barrier_wait(held.drained.at[lax.rem(step, jnp.int32(by.stages))])

    @pl.when(loaded > 0)
    def _():
        plgpu.barrier_wait(held.taken.at[0])


def _multiply(turns, out, held: Buffers, rows, by: Cut):
    """A multiplying warpgroup: spreads and sums its side of every tile, and writes it."""
    warpgroup = lax.axis_index("wg")
    mine = pl.ds(warpgroup * SIDE, SIDE)
    spread = held.spread.at[warpgroup]

    def release(step):
        plgpu.barrier_arrive(held.drained.at[lax.rem(step, jnp.int32(by.stages))])

    def multiply_tile(turn, begun):
        tile = turns.place(turn)

        def accumulate(accumulator):
            def multiply_words(_, step):
                plgpu.barrier_wait(held.arrived.at[0])
                bits = held.words[:, mine]
                plgpu.commit_smem()  # what is read is read before TMA may write again
                plgpu.barrier_arrive(held.taken.at[0])

                def multiply_step(phase, step):
                    slot = lax.rem(step, jnp.int32(by.stages))
                    plgpu.barrier_wait(held.filled.at[slot])
                    found = bits >> _shifts(phase, by).astype(jnp.uint32)
                    kept = [held.values[slot, i, :, mine].astype(spread.dtype) for i in range(KEPT)]
                    for place in range(PLACES):
                        # Of two buffers in turn, the one before the last is free.
                        plgpu.wgmma_wait(1)
                        if place == 1:
                            pl.when(step > begun)(functools.partial(release, step - 1))
                        spread[place % 2] = _spread(found, kept, place)
                        plgpu.commit_smem()
                        inputs = held.x.at[slot, pl.ds(place * rows, rows)]
                        weights = spread.at[place % 2]
                        plgpu.wgmma(
                            accumulator, weights.transpose((1, 0)), inputs.transpose((1, 0))
                        )
                    return step + 1

                return lax.fori_loop(0, by.phases, multiply_step, step)

            end = lax.fori_loop(tile.first, tile.last, multiply_words, begun)
            total = accumulator[...]
            release(end - 1)
            return total

        total = pl.run_scoped(accumulate, plgpu.WGMMAAccumulatorRef((SIDE, rows), jnp.float32))
        out[tile.part, pl.ds(tile.column + warpgroup * SIDE, SIDE)] = total
        return begun + (tile.last - tile.first) * by.phases

    lax.fori_loop(0, turns.count, multiply_tile, jnp.int32(0))


def _shifts(phase, by: Cut):
    """How far down the positions of each row's group lie in its word."""
    bits = 4 * by.groups * phase
    if by.groups == 1:
        return bits
    row = lax.broadcasted_iota(jnp.int32, (SIDE, SIDE), 0)
    return bits + 4 * lax.div(row, jnp.int32(by.words))


def _spread(found, kept, place):
    """The weights at one place of their groups, from both that each group keeps."""
    zero = jnp.zeros_like(kept[0])
    second = jnp.where((found >> 2) & 3 == place, kept[1], zero)
    return jnp.where(found & 3 == place, kept[0], second)
