"""Masks and information that are there beforehand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsparse as js
from jaxsparse.calibration import (
    fisher,
    given,
    optimal_brain_damage,
    prune_oneshot,
    reconstructed,
    swapped,
)


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


STACK = {"w": normal(0, 3, 8, 8) / 3, "b": normal(1, 8)}
BATCHES = [(normal(seed, 16, 8), normal(seed + 9, 16, 8)) for seed in (2, 3)]


def stacked(params, x):
    return jax.lax.scan(lambda x, w: (x + jnp.tanh(x @ w), None), x, params["w"])[0] + params["b"]


def model(params, x, y):
    del y
    return stacked(params, x)


def loss(params, x, y):
    return jnp.mean((stacked(params, x) - y) ** 2)


def by_hand(params, samples):
    slopes = [jax.grad(loss)(params, *sample) for sample in samples]
    return {path: np.mean([np.square(s[path]) for s in slopes], axis=0) for path in params}


def test_fisher_is_the_mean_of_squared_gradients():
    of_batches = fisher(loss, STACK, iter(BATCHES))
    singles = [(x[i : i + 1], y[i : i + 1]) for x, y in BATCHES for i in range(16)]
    of_samples = fisher(loss, STACK, BATCHES, per="sample")
    for path in STACK:
        np.testing.assert_allclose(of_batches[path], by_hand(STACK, BATCHES)[path], rtol=1e-4)
        np.testing.assert_allclose(of_samples[path], by_hand(STACK, singles)[path], rtol=1e-4)
    assert list(fisher(loss, STACK, BATCHES, paths="w")) == ["w"]


def test_fisher_compiles_in_no_weight_that_it_does_not_look_at():
    traced = []

    def value(params, x, y):
        traced.append({path: isinstance(leaf, jax.core.Tracer) for path, leaf in params.items()})
        return loss(params, x, y)

    found = fisher(value, STACK, BATCHES, paths="w")
    np.testing.assert_allclose(found["w"], by_hand(STACK, BATCHES)["w"], rtol=1e-4)
    assert all(seen == {"w": True, "b": True} for seen in traced)


def test_fisher_refuses_gradients_whose_squares_are_no_float32():
    def small(params, x, y):
        return loss(params, x, y) * 1e-25

    with pytest.raises(ValueError, match=r"gradients of '.' of shape .* are .*e-26 at most"):
        fisher(small, STACK, BATCHES)


@pytest.mark.parametrize("power", [100, -90])
def test_brain_damage_of_weights_whose_squares_are_no_float32(power):
    information = {"w": normal(0, 8, 8) ** 2}
    masks = []
    for scale in (1.0, jnp.ldexp(jnp.float32(1), power)):
        criterion = optimal_brain_damage({"w": information["w"] * scale})
        params = {"w": normal(1, 8, 8) * scale}
        found = prune_oneshot(
            lambda params, x: x @ params["w"],
            params,
            [normal(2, 16, 8)],
            [js.Rule("w", js.Unstructured(), 0.5)],
            criterion=criterion,
        )
        masks.append(found.masks["w"])
    np.testing.assert_array_equal(*masks)


def test_fisher_of_bf16_is_float32_and_leaves_integers_alone():
    params = {"w": STACK["w"][0].astype(jnp.bfloat16), "table": jnp.arange(8), "name": "tanh"}

    def value(params, x):
        return jnp.mean((x @ params["w"])[:, params["table"]].astype(jnp.float32) ** 2)

    found = fisher(value, params, [normal(2, 16, 8)])
    assert list(found) == ["w"] and found["w"].dtype == jnp.float32


@pytest.mark.parametrize(
    "pattern", [js.Unstructured(), js.NM(2, 4), js.Block(4, 2), js.Channel(-1)], ids=str
)
def test_brain_damage_keeps_what_the_loss_feels(pattern):
    information = fisher(loss, STACK, BATCHES)
    rules = [js.Rule("w", pattern, 0.5)]
    criterion = optimal_brain_damage(information)
    found = prune_oneshot(model, STACK, BATCHES, rules, criterion=criterion)
    scores = {"w": jnp.sqrt(information["w"]) * jnp.abs(STACK["w"])}  # square them: the damage
    squares = {"w": scores["w"] ** 2}
    axes = js.read_axes(rules, model, STACK, *BATCHES[0])
    np.testing.assert_array_equal(found.masks["w"], js.compute_masks(squares, axes)["w"])
    np.testing.assert_array_equal(found.params["w"], jnp.where(found.masks["w"], STACK["w"], 0))


@pytest.mark.parametrize(
    "pattern", [js.Unstructured(), js.NM(2, 4), js.Block(4, 2), js.Channel(1)], ids=str
)
def test_given_masks_are_kept_and_reconstructed(pattern):
    rules = js.read_axes([js.Rule("w", pattern, 0.5)], model, STACK, *BATCHES[0])
    masks = js.compute_masks(STACK, rules)
    errors = []
    for criterion in (given(masks), reconstructed(given(masks))):
        found = prune_oneshot(model, STACK, BATCHES, rules, criterion=criterion)
        np.testing.assert_array_equal(found.masks["w"], masks["w"])
        errors.append(
            sum(jnp.sum((stacked(found.params, x) - stacked(STACK, x)) ** 2) for x, _ in BATCHES)
        )
    assert errors[1] < errors[0]


@pytest.mark.parametrize("pattern", [js.Unstructured(), js.NM(2, 4)], ids=str)
def test_swaps_of_given_masks_keep_their_numbers(pattern):
    params = {"w": STACK["w"][0]}
    run = lambda params, x: x @ params["w"]  # noqa: E731
    x = normal(4, 32, 8) @ normal(5, 8, 8)
    masks = {"w": jnp.tile(jnp.arange(8)[:, None] % 4 < 2, (1, 8))}
    rules = [js.Rule("w", pattern, 0.25)]  # how many stay is for the mask to say
    found = prune_oneshot(run, params, [(x,)], rules, criterion=swapped(given(masks)))
    group = 4 if isinstance(pattern, js.NM) else 8
    assert (found.masks["w"].reshape(-1, group, 8).sum(1) == group // 2).all()
    before = jnp.sum((run({"w": jnp.where(masks["w"], params["w"], 0)}, x) - run(params, x)) ** 2)
    assert jnp.sum((run(found.params, x) - run(params, x)) ** 2) < before


W = STACK["w"]
HALF = jnp.ones(W.shape, bool).at[:, ::2].set(False)


@pytest.mark.parametrize(
    "criterion, pattern, message",
    [
        (given({}), js.Unstructured(), "no mask for 'w'"),
        (given({"w": HALF[0]}), js.Unstructured(), r"mask of 'w' has shape \(8, 8\)"),
        (given({"w": W}), js.Unstructured(), "like a weight"),
        (given({"w": HALF}), js.Block(4, 2), "splits groups"),
        (given({"w": HALF | (W > 0)}), js.NM(2, 4), "'w' of shape .3, 8, 8. keeps more than NM"),
        (optimal_brain_damage({"v": W}), js.NM(2, 4), "no information on 'w'"),
        (optimal_brain_damage({"w": W[0]}), js.NM(2, 4), r"has shape \(8, 8\), the leaf \(3"),
        (optimal_brain_damage({"w": W}), js.NM(2, 4), "negative or not finite"),
        (optimal_brain_damage({"w": W * jnp.nan}), js.NM(2, 4), "negative or not finite"),
        (swapped(given({"w": HALF})), js.Channel(1), "cannot be swapped one by one"),
    ],
    ids=["none", "shape", "weights", "groups", "quota", "unknown", "small", "below", "nan", "swap"],
)
def test_what_does_not_fit_is_refused(criterion, pattern, message):
    with pytest.raises(ValueError, match=message):
        prune_oneshot(model, STACK, BATCHES, [js.Rule("w", pattern, 0.5)], criterion=criterion)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"batches": []}, "no batches"),
        ({"paths": "v"}, "names no leaf of floats"),
        ({"per": "row"}, "per='row'"),
        ({"loss": model}, "one real number"),
        ({"batches": [(normal(0, 4, 8), normal(1, 3, 8))], "per": "sample"}, "no one number"),
        ({"batches": [(BATCHES[0][0] * jnp.nan, BATCHES[0][1])]}, "of 'b' of shape .8,. are not"),
    ],
    ids=["none", "path", "per", "loss", "samples", "nan"],
)
def test_fisher_refuses_what_has_no_gradient(change, message):
    call = {"loss": loss, "params": STACK, "batches": BATCHES} | change
    with pytest.raises(ValueError, match=message):
        fisher(**call)
