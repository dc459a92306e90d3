"""Pooling, dense grids and voxels, against plain loops over sites."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cloud_cases import EDGE

from jaxsparse import activations as act

named = pytest.mark.parametrize
BOX = act.Bounds(3, (-4, 0), (4, 8))


def drawn(seed=0, n=40, batches=2):
    rng = np.random.default_rng(seed)
    rows = np.unique(rng.integers((0, -4, 0), (batches, 4, 8), (n, 3)), axis=0)
    values = rng.normal(size=(len(rows), 3)).astype(np.float32)
    return act.sparse_tensor(rng.permutation(rows), values, BOX, capacity=48)


REDUCE = {"max": np.max, "avg": np.mean, "sum": np.sum}


@named(
    ("outputs", "reduce"),
    [("floor", "max"), ("floor", "avg"), ("submanifold", "max"), ("receptive", "sum")],
)
def test_windows_are_reduced_over_the_sites_that_are_there(reduce, outputs):
    x = drawn()
    stride, size = (1, 3) if outputs == "submanifold" else (2, (2, 1))
    maps = act.kernel_map(x, size, stride=stride, outputs=outputs, **(
        {} if outputs == "submanifold" else {"capacity": 48}
    ))  # fmt: skip

    def pooled(values):
        return act.pool(x.with_features(values), maps, reduce).features

    y, pull = jax.vjp(pooled, x.features.at[int(x.count) :].set(jnp.nan))
    index, values = np.asarray(maps.index), np.asarray(x.features)
    (dx,) = pull(jnp.ones_like(y).at[int(maps.outputs.count) :].set(jnp.nan))
    expected = np.zeros_like(values)
    for j in range(maps.outputs.capacity):
        rows = index[:, j][index[:, j] < x.capacity]
        window = values[rows]
        if not len(rows):
            np.testing.assert_array_equal(y[j], 0)
            continue
        np.testing.assert_allclose(y[j], REDUCE[reduce](window, axis=0), rtol=1e-5, atol=1e-6)
        share = {"sum": 1.0, "avg": 1 / len(rows), "max": window == window.max(axis=0)}[reduce]
        expected[rows] += share
    np.testing.assert_allclose(dx, expected, rtol=1e-5)


def test_equal_maxima_share_their_gradient():
    x = act.sparse_tensor(np.array([[0, 0], [0, 1], [0, 4]]), jnp.zeros((3, 1)))
    maps = act.kernel_map(x, 2, stride=2, outputs="floor")
    loss = lambda f: jnp.sum(act.pool(x.with_features(f), maps).features)  # noqa: E731
    assert jax.grad(loss)(x.features).ravel().tolist() == [0.5, 0.5, 1.0]


@named("reduce", REDUCE)
def test_whole_clouds_are_reduced(reduce):
    x = drawn()
    values = x.features.at[int(x.count) :].set(jnp.nan)
    y, pull = jax.vjp(lambda f: act.global_pool(x.with_features(f), reduce), values)
    assert y.shape == (3, 3) and not np.any(y[2])  # nothing in the third batch
    batch = np.asarray(x.coordinates)[: int(x.count), 0]
    for b in (0, 1):
        expected = REDUCE[reduce](np.asarray(x.features)[: int(x.count)][batch == b], axis=0)
        np.testing.assert_allclose(y[b], expected, rtol=1e-5)
    (dx,) = pull(jnp.ones_like(y))
    assert not np.any(dx[int(x.count) :]) and np.all(np.isfinite(dx))


def test_sums_of_bfloat16_are_taken_in_float32():
    rows = np.stack([np.zeros(600, int), np.arange(600)], axis=1)
    ones = jnp.ones((600, 1), jnp.bfloat16)
    x = act.sparse_tensor(rows, ones)
    assert act.global_pool(x, "sum").tolist() == [[600]]
    assert act.global_pool(x, "avg").tolist() == [[1]]
    same = act.coalesce(0 * rows, ones, reduce="sum", capacity=1)
    assert same.tensor.features.tolist() == [[600]] and same.tensor.features.dtype == jnp.bfloat16
    assert act.coalesce(0 * rows, ones, reduce="mean", capacity=1).tensor.features.tolist() == [[1]]
    whole = act.coalesce(0 * rows, jnp.full((600, 1), 2**25 + 1), reduce="sum", capacity=1)
    assert whole.tensor.features.dtype == jnp.int32  # whole numbers are summed as such
    with pytest.raises(TypeError, match="int32, need a float"):
        act.pool(x.map(lambda f: f.astype(jnp.int32)), act.kernel_map(x, 3))


@pytest.mark.slow
def test_dense_and_back():
    x = drawn()
    grid = act.to_dense(x)
    assert grid.shape == (3, 8, 8, 3)
    for row, values in zip(x.coordinates[: int(x.count)], x.features, strict=False):
        np.testing.assert_array_equal(grid[row[0], row[1] + 4, row[2]], values)
    assert int(jnp.any(grid != 0, -1).sum()) == int(x.count)
    back = act.from_dense(grid, capacity=48, lower=(-4, 0))
    assert back.bounds == BOX and bool(jnp.all(act.to_dense(back) == grid))
    assert int(act.from_dense(grid, 192, active=jnp.ones((3, 8, 8), bool)).count) == 192
    slopes = jax.grad(lambda g: jnp.sum(act.from_dense(g, 48).features ** 2))(grid)
    np.testing.assert_array_equal(slopes, 2 * grid)
    with pytest.raises(ValueError, match=f"pass capacity={int(x.count)}"):
        act.from_dense(grid, capacity=4)
    with pytest.raises(ValueError, match="active has shape"):
        act.from_dense(grid, 48, active=jnp.ones((3, 8), bool))


@named("case", EDGE["duplicates"], ids=lambda case: case["name"])
@named("reduce", ["sum", "mean", "max", "first"])
def test_duplicates_are_reduced_as_named(case, reduce):
    rows, values = np.array(case["coords"]), np.array(case["features"], np.float32)
    box = act.Bounds(2, (0, 0, 0), (4, 4, 4))
    more, given = 14 - len(rows), len(rows)
    padded = np.pad(rows, ((0, more), (0, 0)), constant_values=9)
    noise = np.pad(values, ((0, more), (0, 0)), constant_values=np.nan)
    found = act.coalesce(padded, noise, box, reduce=reduce, capacity=15, count=given)
    n = case["unique"]
    assert int(found.tensor.count) == n
    np.testing.assert_array_equal(found.tensor.coordinates[:n], case["sorted_unique_coords"])
    np.testing.assert_array_equal(found.counts[:n], case["sorted_counts"])
    assert found.counts[n:].sum() == 0
    np.testing.assert_allclose(found.tensor.features[:n], case[f"{reduce}_sorted"])
    np.testing.assert_array_equal(found.tensor.coordinates[found.rows[:given]], rows)
    assert found.rows[given:].tolist() == [15] * more
    if reduce == "sum" and n > 1:
        with pytest.raises(ValueError, match=f"pass capacity={n} or more"):
            act.coalesce(rows, values, box, reduce=reduce, capacity=n - 1)


def test_points_fall_into_voxels():
    rng = np.random.default_rng(0)
    points, batch = rng.uniform(-1, 1, (60, 2)), rng.integers(0, 2, 60)
    values = rng.normal(size=(60, 2)).astype(np.float32)
    voxels = act.voxelize(points, values, (0.5, 0.25), batch=batch, capacity=64)
    places = np.column_stack([batch, np.floor(points / (0.5, 0.25)).astype(int)])
    np.testing.assert_array_equal(voxels.tensor.coordinates[voxels.rows], places)
    for row in range(int(voxels.tensor.count)):
        members = np.asarray(voxels.rows) == row
        np.testing.assert_allclose(
            voxels.tensor.features[row], values[members].mean(0), rtol=1e-5, atol=1e-6
        )

    def loss(values):
        return jnp.sum(act.voxelize(points, values, (0.5, 0.25), batch=batch).tensor.features)

    shares = 1 / np.asarray(voxels.counts)[np.asarray(voxels.rows)]
    np.testing.assert_allclose(jax.grad(loss)(values), np.tile(shares[:, None], 2), rtol=1e-5)


def test_map_coordinates_keep_their_millimetres():
    points = 636_000.0 + np.array([[0.001], [0.002], [0.003]])
    voxels = act.voxelize(points, np.ones((3, 1)), 0.001)
    assert int(voxels.tensor.count) == 3


def test_points_under_jit_may_be_absent_or_outside():
    box = act.Bounds(1, (0, 0), (4, 4))
    points = jnp.array([[0.5, 0.5], [jnp.nan, 0.0], [9.0, 1.0], [0.6, 0.6]])
    values = jnp.array([[1.0], [jnp.nan], [5.0], [3.0]])
    valid = jnp.array([True, False, True, True])

    def run(points, values, valid, outside):
        return act.voxelize(points, values, 1.0, box, valid=valid, outside=outside)

    run = jax.jit(run, static_argnames="outside")
    dropped = run(points, values, valid, "drop")
    assert int(dropped.tensor.count) == 1 and float(dropped.tensor.features[0, 0]) == 2.0
    assert dropped.rows.tolist() == [0, 4, 4, 0]
    slopes = jax.grad(lambda v: run(points, v, valid, "drop").tensor.features.sum())(values)
    assert slopes.ravel().tolist() == [0.5, 0.0, 0.0, 0.5]
    assert not run(points, values, valid, "refuse").tensor.sites.ok
    assert not run(points, values, jnp.ones(4, bool), "drop").tensor.sites.ok  # a NaN
    with pytest.raises(ValueError, match="1 rows lie outside bounds"):
        act.voxelize(points, values, 1.0, box, valid=valid)
    with pytest.raises(ValueError, match="1 points are not finite"):
        act.voxelize(points, values, 1.0, box)


REFUSED = [
    ("'mean' is none of max", lambda x: act.global_pool(x, "mean")),
    ("'best' is none of max", lambda x: act.pool(x, act.kernel_map(x, 3), "best")),
    ("coordinates differ", lambda x: act.pool(x, act.kernel_map(drawn(1), 3))),
    ("'avg' is none of mean", lambda x: act.coalesce(np.ones((1, 2), int), x.features[:1],
                                                     reduce="avg")),
    ("must be positive", lambda x: act.voxelize(np.ones((1, 2)), np.ones((1, 1)), 0.0)),
    ("1 spatial axes", lambda x: act.voxelize(np.ones((1, 1)), np.ones((1, 1)), 1.0, BOX)),
    ("lie outside", lambda x: act.coalesce(np.full((1, 3), 9), np.ones((1, 1)), BOX)),
    ('must be "refuse"', lambda x: act.voxelize(np.ones((1, 2)), np.ones((1, 1)), 1.0,
                                               outside="clip")),
]  # fmt: skip


@named(("quoted", "call"), REFUSED, ids=[quoted for quoted, _ in REFUSED])
def test_bad_input_is_refused_and_named(quoted, call):
    with pytest.raises(ValueError, match=quoted):
        call(drawn())
