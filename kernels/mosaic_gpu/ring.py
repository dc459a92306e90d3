"""Products of tiles, summed: the one GPU kernel that every direction is made of.

    out[tile] = Σ_s a[tile, s] · b[tile, s],    s = 0 .. steps(tile) - 1

A block of threads stays on its multiprocessor and takes the tiles that `schedule`
deals it. One warpgroup loads, by TMA, into a ring of stages in shared memory; the
others multiply with wgmma and sum in registers, float32 or int32. The ring runs on
from tile to tile: the next tile's first steps load while this one's result is written.

    filled[slot]    both factors have arrived          waited for by who multiplies
    drained[slot]   every warpgroup has read them      waited for by who loads
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from jaxsparse.kernels.mosaic_gpu.configs import Config, slots, square

LOADER_REGISTERS = 40  # per thread of the warpgroup that loads; the rest is the others'
REGISTERS = 512  # per thread of one warpgroup, were it alone on the multiprocessor


class Work(NamedTuple):
    """What is computed, in terms of references to global memory.

    Attributes:
      turns: tiles that this multiprocessor takes; a traced number.
      place: number of the turn -> where its tile is; what the others call tile.
      steps: tile -> how many products it sums; a traced number, may be zero.
      fetch: (tile, step) -> the two factors, of the shapes of `stages`; for a shape of
        three axes a list of as many as its first.
      multiply: (accumulator, first, second, warpgroup) -> None, one step's wgmma.
      destination: (tile, warpgroup) -> where the warpgroup's result goes, the first of
        its rows that do, where the place has fewer than it computed, and whether any.
    """

    turns: Any
    place: Callable[..., Any]
    steps: Callable[..., Any]
    fetch: Callable[..., Any]
    multiply: Callable[..., Any]
    destination: Callable[..., Any]


def run(
    work: Callable[..., Work],
    operands: tuple[jax.Array, ...],
    out: jax.ShapeDtypeStruct,
    *,
    stages: tuple[tuple[int, ...], tuple[int, ...]],
    tile: tuple[int, int],
    config: Config,
    sms: int,
    aligned: int = 128,
) -> jax.Array:
    """Runs `work` of the operands.

    Args:
      work: of references to the operands and to the result.
      operands: arrays in global memory.
      out: shape and dtype of the result.
      stages: shapes of the two factors of a step.
      tile: shape of the result of one warpgroup.
      config: stages and warpgroups.
      sms: multiprocessors, one persistent block of threads on each.
      aligned: a number of columns that every factor fetched begins at a multiple of.
    """
    dtype = operands[-1].dtype
    integers = jnp.issubdtype(dtype, jnp.integer)
    accumulator = plgpu.WGMMAAccumulatorRef(tile, jnp.int32 if integers else jnp.float32)
    held = slots(tile)
    copies = sum(math.prod(shape[:-2]) for shape in stages)
    # wgmma reads both factors through one swizzle: the one that both are wide enough for.
    widths = [min(shape[-1], aligned) for shape in stages]
    swizzle = min(_swizzle(width, dtype) for width in widths)

    def kernel(*refs):
        task = work(*refs)

        def scope(first, second, result, filled, drained):
            warpgroup = lax.axis_index("wg")

            @pl.when(warpgroup == config.warpgroups)
            def _():
                plgpu.set_max_registers(LOADER_REGISTERS, action="decrease")
                _load(task, first, second, filled, drained, config.stages)

            @pl.when(warpgroup < config.warpgroups)
            def _():
                most = min(256, (REGISTERS - LOADER_REGISTERS) // config.warpgroups)
                plgpu.set_max_registers(most // 8 * 8, action="increase")
                own = result.at[warpgroup]
                _multiply(task, first, second, own, filled, drained, config.stages, accumulator)

        pl.run_scoped(
            scope,
            *(shared((config.stages, *shape), dtype, swizzle) for shape in stages),
            shared((config.warpgroups, held, *square(tile)), out.dtype),
            plgpu.Barrier(num_arrivals=copies, num_barriers=config.stages),
            plgpu.Barrier(num_arrivals=config.warpgroups, num_barriers=config.stages),
            collective_axes="wg",
        )

    semantics = plgpu.LoweringSemantics.Warpgroup
    return plgpu.kernel(
        kernel,
        out_type=out,
        grid=(sms,),
        grid_names=("sm",),
        num_threads=config.warpgroups + 1,
        thread_name="wg",
        compiler_params=plgpu.CompilerParams(lowering_semantics=semantics),
    )(*operands)


def _swizzle(width, dtype):
    """The widest swizzle, in bytes, that rows of so many entries are whole multiples of."""
    return plgpu.find_swizzle(width * jnp.dtype(dtype).itemsize * 8)


def shared(shape, dtype, swizzle=None):
    """Shared memory in the swizzled tiling that TMA writes and wgmma reads."""
    swizzle = swizzle or _swizzle(shape[-1], dtype)
    tiling = plgpu.TilingTransform((8, swizzle // jnp.dtype(dtype).itemsize))
    return plgpu.SMEM(shape, dtype, transforms=(tiling, plgpu.SwizzleTransform(swizzle)))


def _load(task, first, second, filled, drained, stages):
    """The loading warpgroup: every step of every tile, `stages` ahead at most."""

    def load_tile(turn, carry):
        tile = task.place(turn)

        def load(step, count):
            slot = lax.rem(count, jnp.int32(stages))

            @pl.when(count >= stages)
            def _():
                plgpu.barrier_wait(drained.at[slot])

            for source, stage in zip(task.fetch(tile, step), (first, second), strict=True):
                if isinstance(source, list):
                    for n, one in enumerate(source):
                        plgpu.copy_gmem_to_smem(one, stage.at[slot, n], filled.at[slot])
                else:
                    plgpu.copy_gmem_to_smem(source, stage.at[slot], filled.at[slot])
            return count + 1

        return lax.fori_loop(0, task.steps(tile), load, carry)

    loaded = lax.fori_loop(0, task.turns, load_tile, jnp.int32(0))

    # No barrier is left with an arrival that nobody waited for.
    @pl.loop(lax.max(loaded - stages, 0), loaded)
    def _(count):
        plgpu.barrier_wait(drained.at[lax.rem(count, jnp.int32(stages))])


def _multiply(task, first, second, result, filled, drained, stages, accumulator_type):
    """A multiplying warpgroup: sums its part of every tile and writes it."""
    warpgroup = lax.axis_index("wg")

    def multiply_tile(turn, carry):
        tile = task.place(turn)
        steps = task.steps(tile)

        def release(count):
            plgpu.barrier_arrive(drained.at[lax.rem(count, jnp.int32(stages))])

        def accumulate(accumulator):
            def step(i, count):
                slot = lax.rem(count, jnp.int32(stages))
                plgpu.barrier_wait(filled.at[slot])
                task.multiply(accumulator, first.at[slot], second.at[slot], warpgroup)
                # All but the product just issued are done: the slot before is free.
                plgpu.wgmma_wait(1)
                pl.when(i > 0)(functools.partial(release, count - 1))
                return count + 1

            end = lax.fori_loop(0, steps, step, carry)
            total = accumulator[...]
            pl.when(steps > 0)(functools.partial(release, end - 1))
            return total

        total = pl.run_scoped(accumulate, accumulator_type)
        place, first_row, any_ = task.destination(tile, warpgroup)
        store = functools.partial(_store, total.astype(result.dtype), result, place, first_row)
        store() if any_ is True else pl.when(any_)(store)
        return carry + steps

    lax.fori_loop(0, task.turns, multiply_tile, jnp.int32(0))
    plgpu.wait_smem_to_gmem(0)


def _store(total, result, destination, first):
    """Writes in squares by way of shared memory, the next one while the last is under way."""
    held, *side = result.shape
    squares = [
        (slice(i, i + side[0]), slice(j, j + side[1]))
        for i in range(0, total.shape[0], side[0])
        for j in range(0, total.shape[1], side[1])
    ]
    kept = destination.shape[0]
    for n, (i, j) in enumerate(squares):
        plgpu.wait_smem_to_gmem(held - 1, wait_read_only=True)
        result[n % held] = total[i, j]
        plgpu.commit_smem()
        if kept < side[0]:
            source, i = result.at[n % held, pl.ds(first, kept)], slice(0, kept)
        else:
            source = result.at[n % held]
        plgpu.copy_smem_to_gmem(source, destination.at[i, j])
