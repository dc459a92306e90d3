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
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxsparse.kernels.layouts import NMLayout
from jaxsparse.kernels.pallas_gpu import schedule
from jaxsparse.kernels.pallas_gpu.ring import LOADER_REGISTERS, REGISTERS, shared

GROUPS = 8  # of 4 inputs in a word
PLACES = 4  # in a group
KEPT = 2  # of them
SIDE = 64  # rows of a step, and outputs of a warpgroup


class Cut(NamedTuple):
    """How a product is divided.

    Attributes:
      words: of a step, for each of SIDE // words groups.
      warpgroups: that multiply, each SIDE outputs.
      splits: parts of the inputs that are summed apart.
      stages: steps that may be loaded ahead.
    """

    words: int
    warpgroups: int
    splits: int
    stages: int

    @property
    def groups(self) -> int:
        """Of each word in one step."""
        return SIDE // self.words

    @property
    def phases(self) -> int:
        """Steps until the words are done with."""
        return GROUPS // self.groups


def cut(layout: NMLayout, rows: int, in_bytes: int, sms: int) -> Cut:
    """As many words at a time as divide K; then what keeps most multiprocessors busy."""
    words = math.gcd(layout.shape[0] // (GROUPS * PLACES), SIDE)
    depth = layout.shape[0] // (GROUPS * PLACES * words)
    # Widening int8 beside the sums of many rows takes more registers than two could have.
    most = 1 if layout.shape[1] % (2 * SIDE) or (in_bytes == 1 and rows > 32) else 2

    def cost(choice):
        warpgroups, splits = choice
        tiles = layout.shape[1] // (SIDE * warpgroups) * splits
        # Reading counts by outputs, and every further part writes and adds up once more.
        return -(-tiles // sms) * -(-depth // splits) * warpgroups * (1 + splits / 32), -warpgroups

    choices = [(w, s) for w in range(1, most + 1) for s in range(1, min(depth, 16) + 1)]
    warpgroups, splits = min(choices, key=cost)
    splits = -(-depth // -(-depth // splits))  # none is empty
    stage = SIDE * 2 * (KEPT * SIDE * warpgroups + PLACES * rows)
    held = warpgroups * SIDE * SIDE * (4 + 2 * 2)
    return Cut(words, warpgroups, splits, min(4, (226 * 1024 - held) // stage))


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


def _run(x, values, words, *, rows, by: Cut, sms):
    """The kernel: parts of yᵀ, of shape (splits, N, rows)."""
    depth, across = words.shape[0] // by.words, words.shape[1]
    width = SIDE * by.warpgroups
    tiles = across // width
    share = -(-depth // by.splits)

    def kernel(x, values, words, out):
        turns = schedule.in_turn(tiles * by.splits, lax.axis_index("sm"), sms)

        def place(turn):
            """The columns of a tile, the part of the inputs and its first and last words."""
            number = turns.place(turn)
            part = lax.div(number, jnp.int32(tiles))
            columns = lax.rem(number, jnp.int32(tiles)) * width
            return columns, part, part * share, jnp.minimum((part + 1) * share, depth)

        def scope(held_x, held, held_words, spread, filled, drained, arrived, taken):
            warpgroup = lax.axis_index("wg")

            @pl.when(warpgroup == by.warpgroups)
            def _():
                plgpu.set_max_registers(LOADER_REGISTERS, action="decrease")
                load(held_x, held, held_words, filled, drained, arrived, taken)

            @pl.when(warpgroup < by.warpgroups)
            def _():
                most = min(240, (REGISTERS - LOADER_REGISTERS) // by.warpgroups)
                plgpu.set_max_registers(most // 8 * 8, action="increase")
                own = spread.at[warpgroup]
                multiply(held_x, held, held_words, own, filled, drained, arrived, taken)

        def load(held_x, held, held_words, filled, drained, arrived, taken):
            def load_tile(turn, carry):
                columns, _, first, last = place(turn)
                columns = pl.ds(columns, width)

                def load_words(word, carry):
                    step, loaded = carry
                    down = pl.ds(word * by.words, by.words)

                    @pl.when(loaded > 0)
                    def _():
                        plgpu.barrier_wait(taken.at[0])

                    for group in range(by.groups):
                        plgpu.copy_gmem_to_smem(
                            words.at[down, columns],
                            held_words.at[pl.ds(group * by.words, by.words)],
                            arrived.at[0],
                        )

                    def load_step(phase, step):
                        slot = lax.rem(step, jnp.int32(by.stages))

                        @pl.when(step >= by.stages)
                        def _():
                            plgpu.barrier_wait(drained.at[slot])

                        high = PLACES * rows
                        plgpu.copy_gmem_to_smem(
                            x.at[pl.ds((word * by.phases + phase) * high, high)],
                            held_x.at[slot],
                            filled.at[slot],
                        )
                        for group in range(by.groups):
                            for i in range(KEPT):
                                row = (phase * by.groups + group) * KEPT + i
                                plgpu.copy_gmem_to_smem(
                                    values.at[down, row, columns],
                                    held.at[slot, i, pl.ds(group * by.words, by.words)],
                                    filled.at[slot],
                                )
                        return step + 1

                    return lax.fori_loop(0, by.phases, load_step, step), loaded + 1

                return lax.fori_loop(first, last, load_words, carry)

            start = jnp.int32(0), jnp.int32(0)
            steps, loaded = lax.fori_loop(0, turns.count, load_tile, start)

            # No barrier is left with an arrival that nobody waited for.
            @pl.loop(lax.max(steps - by.stages, 0), steps)
            def _(step):
                plgpu.barrier_wait(drained.at[lax.rem(step, jnp.int32(by.stages))])

            @pl.when(loaded > 0)
            def _():
                plgpu.barrier_wait(taken.at[0])

        def multiply(held_x, held, held_words, spread, filled, drained, arrived, taken):
            mine = pl.ds(lax.axis_index("wg") * SIDE, SIDE)

            def release(step):
                plgpu.barrier_arrive(drained.at[lax.rem(step, jnp.int32(by.stages))])

            def multiply_tile(turn, begun):
                columns, part, first, last = place(turn)

                def accumulate(accumulator):
                    def multiply_words(word, step):
                        plgpu.barrier_wait(arrived.at[0])
                        bits = held_words[:, mine]
                        plgpu.commit_smem()  # what is read is read before TMA may write again
                        plgpu.barrier_arrive(taken.at[0])

                        def multiply_step(phase, step):
                            slot = lax.rem(step, jnp.int32(by.stages))
                            plgpu.barrier_wait(filled.at[slot])
                            found = bits >> _shifts(phase, by).astype(jnp.uint32)
                            kept = [held[slot, i, :, mine].astype(x.dtype) for i in range(KEPT)]
                            for place in range(PLACES):
                                # Of two buffers in turn, the one before the last is free.
                                plgpu.wgmma_wait(1)
                                if place == 1:
                                    pl.when(step > begun)(functools.partial(release, step - 1))
                                spread[place % 2] = _spread(found, kept, place)
                                plgpu.commit_smem()
                                inputs = held_x.at[slot, pl.ds(place * rows, rows)]
                                plgpu.wgmma(
                                    accumulator,
                                    spread.at[place % 2].transpose((1, 0)),
                                    inputs.transpose((1, 0)),
                                )
                            return step + 1

                        return lax.fori_loop(0, by.phases, multiply_step, step)

                    end = lax.fori_loop(first, last, multiply_words, begun)
                    total = accumulator[...]
                    release(end - 1)
                    return total

                shape = plgpu.WGMMAAccumulatorRef((SIDE, rows), jnp.float32)
                total = pl.run_scoped(accumulate, shape)
                own = pl.ds(columns + lax.axis_index("wg") * SIDE, SIDE)
                out[part, own] = total
                return begun + (last - first) * by.phases

            lax.fori_loop(0, turns.count, multiply_tile, jnp.int32(0))

        copies = 1 + KEPT * by.groups
        pl.run_scoped(
            scope,
            shared((by.stages, PLACES * rows, SIDE), x.dtype),
            shared(
                (by.stages, KEPT, SIDE, width),
                values.dtype,
                min(128, SIDE * values.dtype.itemsize),  # each warpgroup reads its own side
            ),
            shared((SIDE, width), words.dtype),
            shared((by.warpgroups, 2, SIDE, SIDE), x.dtype),
            plgpu.Barrier(num_arrivals=copies, num_barriers=by.stages),
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
