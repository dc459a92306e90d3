"""Losses of layers at several sparsities, against pruning each by itself."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsparse as js
from jaxsparse.allocation import Allocation, Weights, exact, losses
from jaxsparse.calibration import alps, magnitude, optimal_brain_damage, prune_oneshot, wanda

KEYS = jax.random.split(jax.random.key(0), 6)
PARAMS = {
    "up": jax.random.normal(KEYS[0], (8, 12)),
    "stack": jax.random.normal(KEYS[1], (2, 12, 12)) / 3,
    "down": jax.random.normal(KEYS[2], (12, 4)),
}
BATCHES = [jax.random.normal(key, (16, 8)) * jnp.arange(1.0, 9) for key in KEYS[3:5]]
RULES = [js.Rule(".*", js.Unstructured())]
LEVELS = [0.0, 0.5, 0.75]


def model(params, x, seen=None):
    def layer(x, w):
        return jnp.tanh(x @ w), x

    x = jax.nn.relu(x @ params["up"])
    x, met = jax.lax.scan(layer, x, params["stack"])
    if seen is not None:
        seen.append((met, x))
    return x @ params["down"]


def relative(x, w, v):
    return float(jnp.sum((x @ w - x @ v) ** 2) / jnp.sum((x @ w) ** 2))


@pytest.mark.parametrize("criterion", [wanda(), alps()], ids=["wanda", "alps"])
def test_losses_are_those_of_the_dense_model_with_one_leaf_pruned(criterion):
    found = losses(model, PARAMS, BATCHES, RULES, LEVELS, criterion=criterion)
    assert list(found) == ["down", "stack", "up"]
    x, seen = jnp.concatenate(BATCHES), []
    model(PARAMS, x, seen)
    met, last = seen[0]
    for number, level in enumerate(LEVELS[1:], 1):
        new = {}
        for path in ("up", "down"):
            rules = [js.Rule(path, js.Unstructured(), level)]
            pruned = prune_oneshot(model, PARAMS, BATCHES, rules, criterion=criterion)
            new[path] = pruned.params[path]
        assert found["up"][number] == pytest.approx(relative(x, PARAMS["up"], new["up"]), rel=1e-3)
        expected = relative(last, PARAMS["down"], new["down"])
        assert found["down"][number] == pytest.approx(expected, rel=1e-3)
    # Every kernel of the stack is pruned by what it meets in the dense model.
    half = 0.0
    for x, w in zip(met, PARAMS["stack"], strict=True):
        one = prune_oneshot(
            lambda p, x: x @ p["w"], {"w": w}, [x], RULES, sparsity=0.5, criterion=criterion
        )
        half += relative(x, w, one.params["w"])
    assert found["stack"][1] == pytest.approx(half, rel=1e-3)
    assert all(values[0] == 0 for values in found.values())
    assert all(sorted(values) == list(values) for values in found.values())


def test_the_model_is_traced_once():
    runs = []

    def counted(params, x):
        runs.append(1)
        return model(params, x)

    found = losses(counted, PARAMS, BATCHES, RULES, LEVELS)
    again = losses(model, PARAMS, BATCHES, RULES, {path: LEVELS[::-1] for path in PARAMS})
    assert len(runs) == 1
    assert {path: values[::-1] for path, values in again.items()} == found


def test_the_best_allocation_loses_less_than_a_uniform_one_at_the_same_weights():
    # The last layer reads two inputs alone, so the rest of it goes for nothing.
    params = PARAMS | {"down": PARAMS["down"].at[2:].set(0.0)}
    rules = [js.Rule("up|down", js.Unstructured())]
    levels = [0.0, 0.375, 0.5, 0.75]
    weights = Weights(rules, params)
    lost = losses(model, params, BATCHES, rules, levels)
    found = exact(lost, weights, weights.total() // 2, levels=levels)
    assert found.about["proved"] and found.about["unit"] == "weights"
    ours = prune_oneshot(model, params, BATCHES, rules, distribution=found)
    even = prune_oneshot(model, params, BATCHES, rules, sparsity=0.5)
    kept = [sum(int(mask.sum()) for mask in each.masks.values()) for each in (ours, even)]
    assert kept[0] <= kept[1] == weights.total() // 2
    x = jnp.concatenate(BATCHES)
    gap = [jnp.linalg.norm(model(each.params, x) - model(params, x)) for each in (ours, even)]
    assert gap[0] < 0.8 * gap[1]


def test_leaves_with_a_sparsity_of_their_own_are_no_choice():
    rules = [js.Rule("up", js.NM(2, 4)), js.Rule("down", js.Unstructured())]
    assert list(losses(model, PARAMS, BATCHES, rules, [0.5])) == ["down"]
    assert Weights(rules[1:], PARAMS).total() == PARAMS["down"].size
    with pytest.raises(ValueError, match="the rules say the sparsity of all 1 leaves"):
        losses(model, PARAMS, BATCHES, rules[:1], [0.5])


def test_what_is_known_beforehand_is_taken():
    information = jax.tree.map(jnp.ones_like, PARAMS)
    damage = losses(
        model, PARAMS, BATCHES, RULES, LEVELS, criterion=optimal_brain_damage(information)
    )
    assert damage == losses(model, PARAMS, BATCHES, RULES, LEVELS, criterion=magnitude())


@pytest.mark.parametrize(
    ("levels", "words"),
    [
        ([0.5, 1.0], "sparsity 1.0 is not in"),
        ({"up": [0.5]}, "no levels of 'down'; "),
        ([], "levels of 'down' are"),
        ([float("nan")], "sparsity nan"),
    ],
)
def test_levels_that_are_none_are_refused(levels, words):
    with pytest.raises(ValueError, match=words):
        losses(model, PARAMS, BATCHES, RULES, levels)


@pytest.mark.parametrize(
    "pattern",
    [js.Unstructured(), js.Block(4, 4), js.Block(3, 5, pad=True), js.Channel(-1)],
    ids=str,
)
def test_weights_are_never_fewer_than_masks_keep(pattern):
    params = {"w": jax.random.normal(KEYS[0], (12, 8)), "b": jax.random.normal(KEYS[1], (4, 8))}
    rules = [js.Rule(".*", pattern)]
    weights = Weights(rules, params)
    assert weights.total() == 12 * 8 + 4 * 8
    for share in np.linspace(0, 0.9, 19).tolist():
        allocation = Allocation({"w": share, "b": 0.5})
        masks = js.compute_masks(params, rules, distribution=allocation)
        kept = sum(int(mask.sum()) for mask in masks.values())
        counted = weights.total(densities={"w": 1 - share, "b": 0.5})
        assert kept <= counted <= kept + 2 * 15  # at most one padded group of each leaf


def test_weights_of_outputs_are_those_that_one_shot_keeps():
    rules = [js.Rule("down", js.Unstructured())]
    weights = Weights(rules, PARAMS, per="output")
    for share in (0.3, 0.5, 0.7):
        found = prune_oneshot(model, PARAMS, BATCHES, rules, sparsity=share, per="output")
        assert weights.total(densities={"down": 1 - share}) == int(found.masks["down"].sum())
    with pytest.raises(KeyError, match="no leaf 'dwn'; did you mean 'down'"):
        weights.total(densities={"dwn": 0.5})
    with pytest.raises(ValueError, match="no groups such as 'up, down'"):
        weights.total({"up, down": 3})
