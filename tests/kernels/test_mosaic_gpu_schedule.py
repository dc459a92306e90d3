"""How the Hopper kernels divide their work among multiprocessors."""

import heapq

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsparse.kernels import mosaic_gpu
from jaxsparse.kernels.mosaic_gpu import configs, sampling, schedule
from tests.kernels.block_cases import Case
from tests.kernels.hopper import interpreted, needs_mosaic

SMS = 132


def steps_per_multiprocessor(rows, blocks, sms, turns):
    """Steps of every multiprocessor, and how often every tile was taken."""

    @jax.vmap
    def everything(sm):
        count, place = turns(sm)
        row, strip = jax.vmap(place)(jnp.arange(rows * len(blocks), dtype=jnp.int32))
        return count, row * len(blocks) + strip

    counts, tiles = map(np.asarray, jax.jit(everything)(jnp.arange(sms, dtype=jnp.int32)))
    mine = [tiles[sm, : counts[sm]] for sm in range(sms)]
    cost = np.tile(blocks, rows) + schedule.WRITING
    taken = np.bincount(np.concatenate(mine), minlength=rows * len(blocks))
    return np.asarray([cost[own].sum() for own in mine]), taken


def longest_first(tiles, sms):
    """Graham's greedy rule, which needs one tile's load before the next is placed."""
    loads = [0.0] * sms
    for tile in sorted(tiles, reverse=True):
        heapq.heapreplace(loads, loads[0] + tile)
    return np.asarray(loads)


def uneven(strips, seed=0):
    """Few long columns and many short ones, as training leaves them."""
    draws = np.random.default_rng(seed).random(strips)
    return np.minimum(strips, np.ceil(0.04 * strips / draws**0.8)).astype(int)


BLOCKS = {
    "binomial": np.random.default_rng(0).binomial(32, 0.1, 56),
    "uneven": uneven(40),
    "two-kinds": np.where(np.arange(48) % 5 == 0, 32, 2),
    "empty": np.zeros(20, int),
}


@needs_mosaic
@pytest.mark.parametrize("blocks", BLOCKS.values(), ids=BLOCKS)
def test_dealt_tiles_leave_the_multiprocessors_about_as_even_as_the_greedy_rule(blocks):
    rows, sms = 4, 16
    deal = jax.jit(schedule.deal, static_argnums=(1, 2))(jnp.asarray(blocks), rows, sms)
    assert sorted(np.asarray(deal.order)) == list(range(len(blocks)))
    loads, taken = steps_per_multiprocessor(
        rows, blocks, sms, lambda sm: schedule.dealt(*deal, rows, sm, sms)
    )
    np.testing.assert_array_equal(taken, 1)
    best = longest_first(np.repeat(blocks + schedule.WRITING, rows), sms)
    assert loads.max() <= 1.12 * best.max()

    in_turn, taken = steps_per_multiprocessor(
        rows, blocks, sms, lambda sm: schedule.near((rows, len(blocks)), 2, sm, sms)
    )
    np.testing.assert_array_equal(taken, 1)
    assert loads.max() <= in_turn.max()
    if blocks is BLOCKS["uneven"]:
        assert loads.max() <= 0.8 * in_turn.max()


def test_only_a_long_product_with_a_choice_is_dealt():
    assert schedule.pays(blocks=7168, rows=16, strips=112, sms=SMS)
    assert not schedule.pays(blocks=256, rows=16, strips=32, sms=SMS)  # over before it pays
    assert not schedule.pays(blocks=10**6, rows=1, strips=SMS, sms=SMS)  # a tile for each


@pytest.mark.parametrize(
    ("blocks", "depth", "expected"),
    [
        (SMS, 128, 1),  # one block for each
        (4 * SMS, 128, 1),
        (SMS // 2, 128, 2),
        (40, 128, 3),  # 120 parts
        (1, 128, 64),  # 2 steps each, and the sum
        (1, 1, 1),
    ],
)
def test_a_batch_is_split_where_blocks_are_few(blocks, depth, expected):
    splits = configs.splits(blocks, depth, SMS)
    assert splits == expected
    length = -(-depth // splits)
    assert (splits - 1) * length < depth  # no part is empty


@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("spare", [0, 3])
def test_every_block_is_in_one_group_of_its_column(size, spare):
    case = Case((32, 32), (9, 5), 1, spare=spare, density=0.7)
    indptr, _ = case.index
    cols, firsts, lasts = map(np.asarray, sampling.groups(indptr, case.layout, size))
    assert len(cols) == sampling.count(case.layout, size)
    found = []
    for col, first, last in zip(cols, firsts, lasts, strict=True):
        assert last - first < size
        found += [(entry, col) for entry in range(first, last + 1)]
    _, expected = case.places
    expected = [*expected, *[case.grid[1]] * spare]  # room to spare, as if a column
    assert found == list(enumerate(expected))


@needs_mosaic
@pytest.mark.parametrize("op", ["product", "transposed"])
def test_dealt_tiles_agree_with_float64_and_have_no_race(op, monkeypatch):
    monkeypatch.setattr(schedule, "LONG", 0)
    with interpreted():
        Case((64, 64), (2, 3), 70, spare=1).check(mosaic_gpu, op, "bfloat16")


@needs_mosaic
def test_a_split_sum_agrees_with_float64_and_has_no_race(monkeypatch):
    monkeypatch.setattr(configs, "PART", 0)
    case = Case((64, 64), (1, 2), 280)
    assert configs.splits(sampling.count(case.layout, 4), 5, 2) == 2  # of 3 and 2 steps
    with interpreted():
        case.check(mosaic_gpu, "sampled", "bfloat16")
