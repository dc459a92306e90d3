"""Grouping of taps, and products on lists of pairs."""

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from cloud_cases import EDGE, features, weights
from hypothesis import given
from hypothesis import strategies as st

from jaxsparse import activations as act
from jaxsparse.activations import convolution, native


@pytest.mark.parametrize("case", EDGE["grouping"], ids=str)
def test_groups_are_the_facts(case):
    groups = act.plan_groups(
        case["sizes"], case["epsilon"], case["threshold"], middle_apart=case["middle_apart"]
    )
    assert [list(group.taps) for group in groups] == [g["offsets"] for g in case["groups"]]
    for group, fact in zip(groups, case["groups"], strict=True):
        assert (max(group.sizes), group.batched) == (fact["rows"], fact["batched"])
        assert (group.computed, group.useful) == (fact["computed"], fact["useful"])
    odd = len(case["sizes"]) % 2
    middle = case["sizes"][len(case["sizes"]) // 2] if odd and case["middle_apart"] else 0
    assert sum(group.computed for group in groups) + middle == case["computed_rows"]
    assert sum(group.useful for group in groups) + middle == case["useful_rows"]


@given(st.lists(st.integers(0, 50), min_size=1, max_size=27), st.floats(0, 0.9))
def test_waste_is_bounded_and_every_tap_stands_once(sizes, epsilon):
    groups = act.plan_groups(sizes, epsilon, 1000, middle_apart=False)
    assert sorted(t for g in groups for t in g.taps) == list(range(len(sizes)))
    for group in groups:
        assert group.computed <= group.useful / (1 - epsilon) + 1e-6


BOX = act.Bounds(2, (0, 0), (7, 7))


def drawn(seed=0):
    rng = np.random.default_rng(seed)
    rows = np.unique(rng.integers(0, 7, (50, 3)) % (2, 7, 7), axis=0)
    return act.sparse_tensor(rng.permutation(rows), features(seed, len(rows), 3), BOX, capacity=60)


MAPS = {
    "submanifold": lambda x: act.kernel_map(x, 3),
    "even": lambda x: act.kernel_map(x, 2),
    "strided": lambda x: act.kernel_map(x, 3, stride=2, outputs="floor"),
    "inverse": lambda x: act.kernel_map(x, 3, stride=2, outputs="floor").inverse,
}


@pytest.mark.parametrize(
    ("kind", "threshold"),
    [("submanifold", 0), ("submanifold", 15), ("even", 1000), ("strided", 15), ("inverse", 15)],
)
def test_products_on_lists_equal_those_without(kind, threshold):
    plain = MAPS[kind](drawn())
    x = act.SparseTensor(jnp.asarray(features(0, plain.inputs.capacity, 3)), plain.inputs)
    # Rows beyond the count hold NaN, in features and in what flows back.
    values = jnp.where(x.valid[:, None], x.features, jnp.nan)
    listed = act.group_pairs(plain, epsilon=0.4, threshold=threshold)
    w = jnp.asarray(weights(0, (*plain.window.size, 3, 2)))
    results = []
    for maps, dataflow in (
        (plain, "implicit"),
        (plain, "fetch_on_demand"),
        (listed, "gather_scatter"),
    ):

        def run(values, w, maps=maps, dataflow=dataflow):
            return act.sparse_conv(x.with_features(values), w, maps, dataflow=dataflow).features

        y, pull = jax.vjp(run, values, w)
        results.append((y, *pull(jnp.where(maps.outputs.valid[:, None], y, jnp.nan))))
    for other in results[1:]:
        jax.tree.map(np.testing.assert_array_equal, results[0], other)


def test_the_inverse_of_a_listed_map_is_listed():
    x = drawn()
    down = act.group_pairs(act.kernel_map(x, 3, stride=2, outputs="floor"))
    w = jnp.asarray(weights(0, (3, 3, 3, 3)))
    coarse = act.sparse_conv(x, w, down)
    up = act.sparse_conv(coarse, w, down.inverse, dataflow="gather_scatter")
    plain = act.sparse_conv(coarse, w, down.inverse, dataflow="implicit")
    np.testing.assert_array_equal(up.features, plain.features)


def test_a_grouping_that_was_planned_serves_other_clouds_or_says_what_they_need():
    x, w = drawn(), jnp.asarray(weights(0, (3, 3, 3, 2)))
    groups = act.plan_groups(act.kernel_map(x, 3).sizes.tolist())
    roomy, tight = (act.Grouping.of(groups, 4, slack) for slack in (2.0, 0.5))

    def run(x, w, grouping):
        listed = act.group_pairs(act.kernel_map(x, 3), grouping)
        return act.sparse_conv(x, w, listed, dataflow="gather_scatter")

    other = drawn(1)
    expected = act.sparse_conv(other, w, act.kernel_map(other, 3)).features
    jitted = jax.jit(run, static_argnums=2)
    np.testing.assert_array_equal(jitted(other, w, roomy).features, expected)
    y = jitted(other, w, tight)
    assert not y.sites.ok and bool(jnp.all(jnp.isnan(y.features)))
    with pytest.raises(ValueError, match="pairs more than the grouping has room for"):
        run(other, w, tight)
    with pytest.raises(ValueError, match="pairs more than the grouping has room for"):
        act.checked(lambda x, w: run(x, w, tight))(other, w)
    maps = act.group_pairs(act.kernel_map(x, 3))
    exported = jax.export.export(jax.jit(act.sparse_conv))(x, w, maps)
    called = jax.export.deserialize(exported.serialize()).call(x, w, maps)
    np.testing.assert_array_equal(called.features, act.sparse_conv(x, w, maps).features)


def test_bad_input_is_refused_and_named():
    x = drawn()
    maps = act.kernel_map(x, 3)
    w = jnp.ones((3, 3, 3, 2))
    with pytest.raises(ValueError, match="give group_pairs"):
        act.sparse_conv(x, w, maps, dataflow="gather_scatter")
    with pytest.raises(ValueError, match=r"epsilon=1\.0"):
        act.plan_groups([1, 2], 1.0)
    with pytest.raises(ValueError, match="needs grouping="):
        jax.jit(act.group_pairs)(maps)
    whole = act.Grouping.of(act.plan_groups(maps.sizes.tolist(), middle_apart=False), None)
    with pytest.raises(ValueError, match="lists 9 taps with middle None; this map has 8"):
        act.group_pairs(maps, whole)


def test_without_native_kernels_the_choice_is_by_how_many_pairs_are_listed(monkeypatch):
    monkeypatch.setattr(convolution, "no_native", lambda dtype: "there are none")
    text = {}
    for name, side in (("sparse", 3), ("full", 1)):
        places = side * np.arange(8)
        rows = np.stack(np.meshgrid([0], places, places, indexing="ij"), -1).reshape(-1, 3)
        x = act.sparse_tensor(rows, np.ones((64, 4)), act.Bounds(1, (0, 0), (24, 24)))
        listed = act.group_pairs(act.kernel_map(x, 3))
        for dataflow in (None, "gather_scatter", "implicit"):
            run = jax.jit(lambda x, w, m, d=dataflow: act.sparse_conv(x, w, m, dataflow=d))
            lowered = run.lower(x, jnp.ones((3, 3, 4, 2)), listed)
            text[name, dataflow] = lowered.as_text()
    assert text["sparse", None] == text["sparse", "gather_scatter"] != text["sparse", "implicit"]
    assert text["full", None] == text["full", "implicit"] != text["full", "gather_scatter"]


@pytest.mark.slow
def test_the_tuner_times_every_dataflow_and_each_grouping_once():
    x = drawn()
    maps = act.kernel_map(x, 3)
    w = jnp.asarray(weights(0, (3, 3, 3, 2)))
    timings = act.tune_dataflow(
        x, w, maps, epsilons=(0.0, 0.5), thresholds=(0, 1000, 2000), backward=True, rounds=1
    )
    assert [t.seconds for t in timings] == sorted(t.seconds for t in timings)
    groupings = [t.grouping for t in timings if t.dataflow == "gather_scatter"]
    assert len(groupings) == len(set(groupings)) == 3  # one by one, and batched at each epsilon
    own = {"native"} if native.missing() is None else set()
    assert {t.dataflow for t in timings} == own | {"implicit", "fetch_on_demand", "gather_scatter"}
    act.group_pairs(maps, groupings[0])
    with pytest.raises(ValueError, match="outside of jit"):
        jax.jit(lambda maps: act.tune_dataflow(x, w, maps))(maps)
