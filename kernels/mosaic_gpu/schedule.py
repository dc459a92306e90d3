"""Which multiprocessor multiplies which tile, and in which order.

A tile costs as many steps as its strip has blocks, and strips differ. Two ways:

    in turn   the n-th tile to multiprocessor n mod sms; tiles that read the same are
              multiplied at the same time, so that they find it in the L2 cache
    dealt     longest tiles first, in whole rounds, there and back; then the rest,
              poured in order into the room that is left under a common level

Dealing is computed from the index by XLA before the kernel starts: sixteen small
launches, which only a long product earns back (`pays`).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, Int

WRITING = 2  # steps that writing a tile's result costs as much as
LONG = 400  # steps per multiprocessor, about 0.2 ms, from which dealing is worth its launches


class Deal(NamedTuple):
    """Tiles by multiprocessor; tile n is row n % rows of strip order[n // rows].

    The first bounds[0] tiles go out in whole rounds. After them multiprocessor s takes
    the tiles from bounds[s] to bounds[s + 1].
    """

    order: Int[Array, "strips"]
    bounds: Int[Array, "sms_and_one"]


class Turns(NamedTuple):
    """What one multiprocessor does: how many tiles, and where the n-th is."""

    count: Any
    place: Callable[[Any], Any]


def pays(blocks: int, rows: int, strips: int, sms: int) -> bool:
    """Whether to deal: there is a choice, and it is about enough work."""
    return rows * strips > sms and rows * blocks >= LONG * sms


def deal(blocks: Int[Array, "strips"], rows: int, sms: int) -> Deal:
    """Deals rows x strips tiles of blocks[strip] steps each to `sms` multiprocessors.

    Every number of whole rounds is tried, in one program; that which leaves the
    busiest multiprocessor the least to do is taken.
    """
    strips = blocks.shape[0]
    order = jnp.argsort(-blocks, stable=True).astype(jnp.int32)
    cost = (blocks[order] + WRITING).astype(jnp.float32)
    ends = rows * jnp.cumsum(cost)  # of the work of every strip

    def before(tiles):
        strip = jnp.minimum(tiles // rows, strips - 1)
        return ends[strip] - (rows * (strip + 1) - tiles) * cost[strip]

    # Row r of what follows: after r whole rounds.
    turns = jnp.arange(rows * strips // sms, dtype=jnp.int32)[:, None]
    round_ = cost[_there_and_back(turns, jnp.arange(sms, dtype=jnp.int32), sms) // rows]
    loads = jnp.pad(jnp.cumsum(round_, axis=0), ((1, 0), (0, 0)))

    # Of the levels at which the lowest k would hold the rest, the least is the true one.
    total = jnp.sum(loads, axis=1, keepdims=True)
    filled = ends[-1] - total + jnp.cumsum(jnp.sort(loads, axis=1), axis=1)
    level = jnp.min(filled / jnp.arange(1, sms + 1), axis=1, keepdims=True)
    poured = total + jnp.cumsum(jnp.maximum(level - loads, 0), axis=1)

    # Work up to a point -> tiles whose middle lies before it.
    strip = jnp.minimum(jnp.sum(ends <= poured[..., None], axis=2), strips - 1)
    begun = rows - (ends[strip] - poured) / cost[strip]
    tiles = strip * rows + jnp.clip(jnp.round(begun), 0, rows).astype(jnp.int32)
    first = sms * jnp.arange(turns.shape[0] + 1, dtype=jnp.int32)[:, None]
    last = jnp.full_like(first, rows * strips)
    bounds = jnp.concatenate([first, jnp.maximum(tiles[:, :-1], first), last], axis=1)
    busiest = jnp.max(loads + jnp.diff(before(bounds), axis=1), axis=1)
    return Deal(order, bounds[jnp.argmin(busiest)].astype(jnp.int32))


def dealt(order, bounds, rows: int, sm, sms: int) -> Turns:
    """The turns of multiprocessor `sm` in what `deal` dealt: places are (row, strip)."""
    rounds = lax.div(bounds[0], jnp.int32(sms))
    first = bounds[sm]

    def place(turn):
        number = jnp.where(turn < rounds, _there_and_back(turn, sm, sms), first + turn - rounds)
        return lax.rem(number, jnp.int32(rows)), order[lax.div(number, jnp.int32(rows))]

    return Turns(rounds + bounds[sm + 1] - first, place)


def _there_and_back(turn, sm, sms):
    """Whoever comes first in one round comes last in the next."""
    back = lax.rem(turn, jnp.int32(2)) == 1
    return turn * sms + jnp.where(back, sms - 1 - sm, sm)


def in_turn(tiles: int, sm, sms: int) -> Turns:
    """Every sms-th of so many tiles: places are their numbers."""
    return Turns(lax.div(tiles - sm + (sms - 1), jnp.int32(sms)), lambda turn: turn * sms + sm)


def near(grid: tuple[int, int], strip: int, sm, sms: int) -> Turns:
    """Every sms-th tile of a grid, in turn: `strip` rows of tiles down, then across."""
    turns = in_turn(grid[0] * grid[1], sm, sms)
    return turns._replace(place=lambda turn: plgpu.planar_snake(turns.place(turn), grid, 0, strip))
