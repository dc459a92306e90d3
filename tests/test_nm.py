"""N:M masks against brute force."""

import functools
import itertools

import jax.numpy as jnp
import numpy as np
import pytest
from jax import jit

import jaxsparse as js
from jaxsparse.patterns.rules import resolve
from jaxsparse.patterns.views import view_of
from jaxsparse.pruning.choosers import Counted


def mask_of(pattern, scores, path="dense/kernel"):
    """The mask with every group pruned."""
    view = view_of(path, scores.shape)
    pattern.check(path, view)
    return np.asarray(pruned(pattern, view, jnp.asarray(scores, jnp.float32)))


@functools.partial(jit, static_argnums=(0, 1))
def pruned(pattern, view, scores):
    pooled = pattern.pool(scores, view)
    none = jnp.zeros(pattern.unit_scores(pooled, None, view)[0].shape, bool)
    return pattern.expand(pattern.finish(none, pooled, None, view), view)


def oracle_1d(scores, n, m):
    keep = np.zeros(scores.shape, bool)
    for start in range(0, scores.shape[0], m):
        for column in range(scores.shape[1]):
            group = scores[start : start + m, column]
            rank = sorted(range(len(group)), key=lambda i: (np.isnan(group[i]), -group[i], i))
            keep[start + np.array(rank[:n]), column] = True
    return keep


def tiles(matrix):
    k, n = matrix.shape
    return matrix.reshape(k // 4, 4, n // 4, 4).swapaxes(1, 2).reshape(-1, 4, 4)


ROWS = [np.array(r, bool) for r in itertools.product((0, 1), repeat=4) if sum(r) == 2]
NINETY = [np.stack(t) for t in itertools.product(ROWS, repeat=4) if (np.sum(t, axis=0) == 2).all()]


@pytest.mark.parametrize("n,m", [(2, 4), (1, 4), (4, 8), (3, 5), (1, 2)])
@pytest.mark.parametrize("rows", [1, 2])
def test_1d_keeps_the_largest_of_every_group(n, m, rows):
    rng = np.random.default_rng(n * m)
    for scores in (rng.normal(size=(m * rows, 6)), rng.integers(0, 3, (m * rows, 6)) - 1.0):
        got = mask_of(js.NM(n, m), scores)
        np.testing.assert_array_equal(got, oracle_1d(scores, n, m))
        assert (got.reshape(rows, m, 6).sum(1) == n).all()


def test_ties_take_the_lowest_index_and_nan_is_last():
    nan = float("nan")
    columns = [[1, 1, 1, 1], [nan, 0, nan, -9], [0, -0.0, 0, -0.0], [nan] * 4, [-9, nan, 1, np.inf]]
    got = mask_of(js.NM(2, 4), np.array(columns).T).T
    kept = [[0, 1], [1, 3], [0, 1], [0, 1], [2, 3]]
    assert [np.flatnonzero(column).tolist() for column in got] == kept


@pytest.mark.parametrize("rows,columns", [(6, 3), (7, 5), (1, 4), (9, 2)])
@pytest.mark.parametrize("method", ["1d", "best", "greedy"])
def test_odd_sizes_with_padding(rows, columns, method):
    scores = np.random.default_rng(rows).normal(size=(rows, columns))
    got = mask_of(js.NM(2, 4, method, pad=True), scores)
    padded = np.zeros((rows + -rows % 4, columns + -columns % 4), bool)
    padded[:rows, :columns] = got
    if method == "1d":
        np.testing.assert_array_equal(got, oracle_1d(scores, 2, 4))
        return
    lowest = np.full(padded.shape, -np.inf)
    lowest[:rows, :columns] = scores
    for tile, kept in zip(tiles(lowest), tiles(padded), strict=True):
        assert kept.sum(0).max() <= 2 and kept.sum(1).max() <= 2
        if method == "best":  # as many real entries as can be, then the largest sum of them
            real = np.isfinite(tile)
            value = max(((p & real).sum(), tile[p & real].sum()) for p in NINETY)
            assert (kept.sum(), tile[kept].sum()) == pytest.approx(value)


def test_best_is_the_best_of_the_ninety_both_ways():
    assert len(NINETY) == 90
    scores = np.random.default_rng(0).random((16, 24))
    got = mask_of(js.NM(2, 4, "best"), scores)
    for tile, kept in zip(tiles(scores), tiles(got), strict=True):
        assert (kept.sum(0) == 2).all() and (kept.sum(1) == 2).all()
        assert tile[kept].sum() == pytest.approx(max(tile[p].sum() for p in NINETY))
    one_of_four = mask_of(js.NM(1, 4, "best"), scores)
    best = [max(sum(t[i, p[i]] for i in range(4)) for p in itertools.permutations(range(4)))
            for t in tiles(scores)]  # fmt: skip
    assert scores[one_of_four].sum() == pytest.approx(sum(best))


def test_best_is_not_blinded_by_infinity_or_nan():
    scores = np.random.default_rng(1).random((4, 4))
    for odd in (np.inf, np.nan, -np.inf):
        tile = scores.copy()
        tile[1, 2] = odd
        rest = np.where(np.isfinite(tile), tile, 0)
        allowed = [p for p in NINETY if p[1, 2] == (odd == np.inf)]
        kept = mask_of(js.NM(2, 4, "best"), tile)
        assert kept[1, 2] == (odd == np.inf)
        assert rest[kept].sum() == pytest.approx(max(rest[p].sum() for p in allowed))


@pytest.mark.parametrize("n,m", [(2, 4), (4, 8), (1, 4)])
def test_greedy_takes_entries_while_there_is_room(n, m):
    scores = np.random.default_rng(m).integers(0, 9, (2 * m, 3 * m)).astype(float)
    got = mask_of(js.NM(n, m, "greedy"), scores)
    for i, j in itertools.product(range(0, 2 * m, m), range(0, 3 * m, m)):
        tile, kept = scores[i : i + m, j : j + m], np.zeros((m, m), bool)
        for at in sorted(np.ndindex(m, m), key=lambda at: (-tile[at], at)):
            kept[at] = kept[at[0]].sum() < n and kept[:, at[1]].sum() < n
        np.testing.assert_array_equal(got[i : i + m, j : j + m], kept)


def test_published_shares_of_magnitude():
    scores = np.abs(np.random.default_rng(7).normal(size=(256, 256)))
    kept = {m: scores[mask_of(js.NM(2, 4, m), scores)].sum() for m in ("1d", "best", "greedy")}
    assert kept["best"] / kept["1d"] == pytest.approx(0.944, abs=0.005)
    assert kept["greedy"] / kept["best"] == pytest.approx(0.985, abs=0.005)


@pytest.mark.parametrize("method", ["1d", "best", "greedy"])
def test_a_schedule_prunes_what_loses_least_first_and_brings_nothing_back(method):
    rng = np.random.default_rng(3)
    weights = {"kernel": jnp.zeros((16, 8))}
    specs = resolve([js.Rule("kernel", js.NM(2, 4, method))], weights)
    counted = Counted(schedule=js.linear(begin=0, end=4, every=1))
    pick = jit(lambda scores, allowed, step: counted.best(scores, allowed, step, specs))
    shape = (4, 4, 2, 4) if method != "1d" else (4, 4, 8, 1)
    allowed = {"kernel": jnp.ones((16, 8), bool)}
    units = specs["kernel"].units
    for step in range(5):
        scores = rng.random((16, 8)).astype(np.float32)  # other scores every time
        before = np.asarray(allowed["kernel"])
        mask = np.asarray(pick({"kernel": jnp.asarray(scores)}, allowed, step)["kernel"])
        assert not (mask & ~before).any()
        dense = mask.reshape(shape).all(axis=(1, 3))
        assert dense.sum() == units - units * step // 4
        full = mask_of(js.NM(2, 4, method), scores)
        loss = np.where(full, 0, scores).reshape(shape).sum(axis=(1, 3))
        was_dense = before.reshape(shape).all(axis=(1, 3))
        fell = was_dense & ~dense
        if fell.any() and dense.any():
            assert loss[fell].max() <= loss[dense].min() + 1e-6
        newly = np.broadcast_to(fell[:, None, :, None], shape).reshape(16, 8)
        np.testing.assert_array_equal(mask[newly], full[newly])
        allowed = {"kernel": jnp.asarray(mask)}
    assert dense.sum() == 0


@pytest.mark.parametrize(
    "make,words",
    [
        (lambda: js.NM(4, 4), "0 < n < m"),
        (lambda: js.NM(0, 4), "how many of m are kept"),
        (lambda: js.NM(2, 4, "worst"), "none of '1d', 'best', 'greedy'"),
        (lambda: js.NM(4, 8, "best"), "method='greedy' would work"),
        (lambda: mask_of(js.NM(2, 4, "best"), np.ones((4, 6))), "output size 6.*4 or 8"),
    ],
)
def test_errors(make, words):
    with pytest.raises(ValueError, match=words):
        make()


@pytest.mark.parametrize(
    ("inputs", "cures"),
    [(10, "8 or 12 would work, so would m of 5 or 10 there, or"), (2, "4 would work, or")],
)
def test_what_does_not_divide_names_an_m_that_keeps_two(inputs, cures):
    weight = {"w": jnp.ones((inputs, 4))}
    with pytest.raises(ValueError, match=f"input size {inputs} is no .* size {cures} pad=True"):
        js.targets([js.Rule("w", js.NM(2, 4))], weight)
    assert js.targets([js.Rule("w", js.NM(2, 4, pad=True))], weight)
