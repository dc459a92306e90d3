"""Exact top-k masks: against a sort, on scores made to break them, on eight devices."""

import math
import re

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxsparse.top_k import (
    Candidates,
    common_bits,
    from_ordered_bits,
    ordered_bits,
    top_k_masks,
)

MOVES = r"\b(all-gather|all-to-all|collective-permute|collective-broadcast|reduce-scatter|sort)\b"
SPECIAL = [0.0, -0.0, 1e-45, -1e-45, 1e-39, -1e-39, np.nan, -np.nan, np.inf, -np.inf, 1.0, -1.0]
SPECIAL += [np.float32(1) + np.float32(2**-23), 3.4e38, -3.4e38, 2**-24, 1e-40]


@jax.jit
def choose(scores, kept, allowed=None):
    return top_k_masks([Candidates(scores, kept, allowed)])[0]


def oracle(scores, k, allowed=None):
    """The k largest of one slice by a stable sort."""
    flat = np.asarray(scores).astype(np.float64).ravel()
    nan = np.isnan(flat)
    barred = np.zeros(flat.size, bool) if allowed is None else ~np.asarray(allowed).ravel()
    nan, value = nan & ~barred, np.where(nan | barred, 0.0, flat)
    order = np.lexsort((np.arange(flat.size), -value, nan, barred))
    mask = np.zeros(flat.size, bool)
    mask[order[:k]] = True
    return mask.reshape(np.shape(scores))


def adversarial(name, rng, n):
    return {
        "equal": np.full(n, 0.25),
        "zeros": np.where(rng.random(n) < 0.5, 0.0, -0.0),
        "subnormal": rng.integers(-3, 4, n) * 1e-45,
        "nan": np.full(n, np.nan),
        "mixed": rng.choice(SPECIAL, n),
        "ties": rng.integers(-2, 3, n).astype(float),
        "normal": rng.normal(size=n),
    }[name]


every = jax.jit(jax.vmap(choose, in_axes=(None, 0)))


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("name", ["equal", "zeros", "subnormal", "nan", "mixed", "ties", "normal"])
def test_every_k_on_adversarial_scores(name, dtype):
    n = 37
    with np.errstate(over="ignore"):
        scores = adversarial(name, np.random.default_rng(1), n).astype(dtype)
    masks = every(jnp.asarray(scores), jnp.arange(n + 1))
    for k in range(n + 1):
        np.testing.assert_array_equal(masks[k], oracle(scores, k), err_msg=f"k={k}")


def test_float64_distinguishes_what_float32_does_not():
    scores = 1 + np.arange(9)[::-1] * 2.0**-50
    with jax.enable_x64(True):
        got = choose(jnp.asarray(scores[[3, 0, 8, 1]]), jnp.int32(2))
        tiny = jnp.asarray([5e-324, 0.0, -5e-324, 1e-323, -0.0])
        small = choose(tiny, jnp.int32(3))
    assert got.tolist() == [False, True, False, True]
    assert small.tolist() == [True, True, False, True, False]


def test_float32_and_float64_leaves_are_ranked_together():
    with jax.enable_x64(True):
        a, b = jnp.asarray([1.0, 4.0], jnp.float32), jnp.asarray([3.0, 2.0], jnp.float64)
        masks = jax.jit(lambda a, b: top_k_masks([Candidates(x, jnp.int32(1)) for x in (a, b)]))(
            a, b
        )
        bits = np.concatenate([np.asarray(x) for x in common_bits([(a, None), (b, None)])])
    assert [m.tolist() for m in masks] == [[False, True], [True, False]]
    assert np.argsort(bits).tolist() == [0, 3, 2, 1]


CASES = [((5,), 0), ((3, 5), 1), ((2, 8), 0), ((2, 3, 32), 1), ((3, 2, 8), 2), ((1, 64), 0)]


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(CASES), st.booleans(), st.integers(0, 2**16))
def test_any_shape_batch_and_allowed(case, bars, seed):
    shape, batch_ndim = case
    rng, batch = np.random.default_rng(seed), shape[:batch_ndim]
    scores = rng.choice(np.float32(SPECIAL), shape)
    allowed = rng.random(shape) < 0.6 if bars else np.ones(shape, bool)
    kept = rng.integers(0, math.prod(shape[batch_ndim:]) + 1, batch)
    got = choose(scores, jnp.asarray(kept, jnp.int32), allowed)
    for at in np.ndindex(batch):
        np.testing.assert_array_equal(got[at], oracle(scores[at], kept[at], allowed[at]))


def test_several_leaves_are_chosen_apart():
    rng = np.random.default_rng(2)
    leaves = [rng.integers(0, 3, s).astype(np.float32) for s in ((7,), (4, 64), (3, 5))]
    kept = [3, 100, 0]
    together = jax.jit(lambda leaves: top_k_masks([Candidates(*leaf) for leaf in leaves]))
    got = together([(s, np.int32(k)) for s, k in zip(leaves, kept, strict=True)])
    for mask, scores, k in zip(got, leaves, kept, strict=True):
        np.testing.assert_array_equal(mask, oracle(scores, k))
    assert top_k_masks([]) == []
    assert top_k_masks([Candidates(jnp.zeros(0), jnp.int32(0))])[0].shape == (0,)


def test_not_allowed_ranks_below_nan():
    scores = jnp.asarray([jnp.inf, jnp.nan, -jnp.inf, 5.0])
    allowed = jnp.asarray([False, True, True, False])
    got = [choose(scores, jnp.int32(k), allowed).tolist() for k in range(1, 5)]
    assert got == [
        [False, False, True, False],
        [False, True, True, False],
        [True, True, True, False],
        [True] * 4,
    ]


def test_ordered_bits_keep_the_order_and_come_back():
    numbers = np.sort(np.float32([x for x in SPECIAL if not np.isnan(x) and x != 0] + [0.0]))
    bits = ordered_bits(jnp.asarray(numbers))
    assert (np.diff(np.asarray(bits).astype(np.int64))[np.diff(numbers) > 0] > 0).all()
    back = np.asarray(from_ordered_bits(bits))
    assert back.view(np.uint32).tolist() == numbers.view(np.uint32).tolist()
    assert int(ordered_bits(jnp.asarray([-0.0]))[0]) == int(ordered_bits(jnp.asarray([0.0]))[0])


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize(
    "shape,spec",
    [
        ((64, 128), P("a", "b")),
        ((64, 128), P(None, ("a", "b"))),
        ((8, 6), P("a", "b")),  # shards smaller than any chunk
        ((128, 32), P("b", "a")),
        ((64, 40), P(("a", "b"), None)),
        ((512,), P(("a", "b"))),
    ],
)
def test_eight_devices_exchange_counts_only(kind, shape, spec):
    mesh = jax.make_mesh((4, 2), ("a", "b"), axis_types=(kind, kind))
    scores = np.random.default_rng(3).integers(-4, 4, shape).astype(np.float32)
    allowed = np.random.default_rng(4).random(shape) < 0.7
    with jax.set_mesh(mesh):
        put = [jax.device_put(x, NamedSharding(mesh, spec)) for x in (scores, allowed)]
        text = choose.lower(put[0], jnp.int32(5), put[1]).compile().as_text()
        for k in (0, 5, scores.size // 3, scores.size):
            mask = choose(put[0], jnp.int32(k), put[1])
            np.testing.assert_array_equal(mask, oracle(scores, k, allowed))
            assert mask.sharding.is_equivalent_to(put[0].sharding, mask.ndim)
    assert "all-reduce" in text
    assert not set(re.findall(MOVES, text))


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_sharded_stack_of_layers(kind):
    mesh = jax.make_mesh((4, 2), ("a", "b"), axis_types=(kind, kind))
    scores = np.random.default_rng(5).integers(0, 3, (4, 8, 32)).astype(np.float32)
    kept = np.array([0, 1, 100, 256], np.int32)
    with jax.set_mesh(mesh):
        put = jax.device_put(scores, NamedSharding(mesh, P("a", None, "b")))
        counts = jax.device_put(kept, NamedSharding(mesh, P("a")))
        text, mask = choose.lower(put, counts).compile().as_text(), choose(put, counts)
    for layer, k in enumerate(kept):
        np.testing.assert_array_equal(np.asarray(mask)[layer], oracle(scores[layer], k))
    assert not set(re.findall(MOVES, text))
