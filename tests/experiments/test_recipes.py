import functools
import itertools
from typing import NamedTuple

import jax
import numpy as np
import pytest
import toys

import jaxsparse as js
from experiments import experiment as experiments
from experiments.recipes import RECIPES
from jaxsparse.trees import leaves_by_path

# Options for 24 steps; the recipes that train dense first do so for 6.
OPTIONS = {
    "dense": {"begin": 6},
    "magnitude": {"begin": 6, "end": 16, "every": 2},
    "one_shot": {"begin": 6},
    "iterative": {"begin": 6, "rounds": 3},
    "nm": {"begin": 6, "end": 16, "every": 2},
    "asp": {"begin": 6},
    "rigl": {"end": 16, "every": 4},
    "set": {"end": 16, "every": 4},
    "movement": {"begin": 6, "end": 16},
    "structured_movement": {"begin": 6, "end": 16, "factors": ((".*", 2.0),)},
    "structured_magnitude": {"begin": 6, "end": 16, "every": 1},
    "group_lasso": {"begin": 6, "end": 16, "alpha": 22.0},
}


def build(name, **overrides):
    if name in ("nm", "asp"):
        overrides = {"rules": ((r"layers_0/kernel", "2:4"),), "sparsity": 0.5} | overrides
    if name == "group_lasso":
        overrides = {"learning_rate__shape": "constant"} | overrides
    config = toys.config(recipe__name=name, **overrides)
    config.recipe.update(OPTIONS[name])
    return experiments.build(config)


class Trained(NamedTuple):
    """A finished run of 24 steps; entry i of the lists is the state after i + 1 steps."""

    experiment: experiments.Experiment
    masks: list[np.ndarray]
    weights: list[np.ndarray]
    model: list[np.ndarray]

    @property
    def sparsities(self):
        return [float(1 - mask.mean()) for mask in self.masks]


@functools.cache
def train(name, form="pruned"):
    overrides = {"recipe__form": form, "recipe__group_lasso": 1e-3} if name == "magnitude" else {}
    experiment = build(name, **overrides)
    state, masks, weights = experiment.init(), [], []
    for number in range(24):
        state, _ = experiment.step(state, *experiment.batches(number), np.int32(number))
        weights.append(np.asarray(leaves_by_path(state.params)["layers_0/kernel"]))
        found = experiment.masks(state) or {"layers_0/kernel": np.ones_like(weights[0], bool)}
        masks.append(np.asarray(found["layers_0/kernel"]))
        assert float(experiment.sparsity(state)) == pytest.approx(1 - masks[-1].mean())
    model = js.mask_params(state.params, experiment.masks(state))
    return Trained(
        experiment, masks, weights, [np.asarray(leaf) for leaf in jax.tree.leaves(model)]
    )


def test_every_recipe_is_tested():
    assert sorted(OPTIONS) == RECIPES.names


@pytest.mark.parametrize("name", OPTIONS)
def test_a_recipe_reaches_its_sparsity(name):
    run = train(name)
    if name == "dense":
        assert set(run.sparsities) == {0.0}
        return
    begin = run.experiment.recipe.dense_until
    assert begin == OPTIONS[name].get("begin", 0)
    assert run.sparsities[:begin] == [0.0] * begin
    if name in ("group_lasso", "structured_movement"):
        assert 0.0 < run.sparsities[-1] < 1.0 and run.experiment.targets == {}
    else:
        target = run.experiment.targets["layers_0/kernel"]
        assert run.sparsities[-1] == pytest.approx(target)


def test_the_zero_groups_of_the_lasso_are_the_masks():
    run = train("group_lasso")
    # The weights after 15 steps decide the masks of step 16, the first after `end`.
    nonzero = (run.weights[14].reshape(4, 4, 2, 16) != 0).any(axis=(1, 3))
    for mask in run.masks[15:]:
        np.testing.assert_array_equal(mask, nonzero.repeat(4, axis=0).repeat(16, axis=1))


def test_the_chain_computes_the_model_of_the_reference_form():
    """The chain stores weights one decision behind; what it computes is the same."""
    for one, two in zip(train("magnitude").model, train("magnitude", "chain").model, strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-6)


def test_levels_of_iterative_pruning():
    # Densities 0.25^(1/3), 0.25^(2/3), 0.25 of 8 blocks, every 6 steps from step 6 on.
    found = train("iterative").sparsities
    assert found == [0.0] * 6 + [0.375] * 6 + [0.625] * 6 + [0.75] * 6


@pytest.mark.parametrize(
    "name", ["rigl", "set", "movement", "structured_movement", "structured_magnitude", "nm"]
)
def test_masks_rest_after_the_end(name):
    masks = train(name).masks
    changed = [np.any(new != old) for old, new in itertools.pairwise(masks)]
    grown = [np.any(new & ~old) for old, new in itertools.pairwise(masks)]
    assert any(changed[:16]) and not any(changed[16:])
    assert name not in ("rigl", "set") or any(grown[:16])


@pytest.mark.parametrize(
    ("recipe", "options", "message"),
    [
        ("magnitud", {}, "unknown recipe 'magnitud'; did you mean 'magnitude'"),
        ("magnitude", {"begin": 1, "end": 2, "evry": 1}, "no option 'evry'; did you mean 'every'"),
        ("magnitude", {"begin": 1}, "recipe 'magnitude' needs the option end"),
        ("magnitude", {"begin": 1, "end": 24}, "recipe.end = 24 is outside the run's 24 steps"),
        ("magnitude", {"begin": 9, "end": 4}, "recipe.begin = 9 lies after recipe.end = 4; make"),
        ("nm", {"begin": 0.95, "end": 0.5}, r"begin = 23 \(0.95 .*\) lies after .* 12 \(0.5 of"),
        ("nm", {"begin": 0.5, "end": 0.99}, r"end = 24 \(0.99 of the run\).*config.steps = 51"),
        ("magnitude", {"begin": 1, "end": 4, "every": 0}, "recipe.every = 0 never ends"),
        ("magnitude", {"begin": 1, "end": 4, "ramp": "cubik"}, "recipe.ramp 'cubik'; did you mean"),
        ("magnitude", {"begin": 1, "end": 4, "form": "x"}, "'pruned' or 'chain', not 'x'"),
        ("iterative", {"begin": 9, "rounds": 0}, "rounds"),
    ],
)
def test_recipe_errors(recipe, options, message):
    config = toys.config(recipe__name=recipe)
    config.recipe.update(options)
    with pytest.raises(ValueError, match=message):
        experiments.build(config)
