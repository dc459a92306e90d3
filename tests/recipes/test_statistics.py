"""What the recipe of movement says of a run while it goes on."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import jaxsparse as js
from jaxsparse.recipes import RecipeError
from jaxsparse.recipes.movement import from_config

CONFIG = {
    "algorithm": "movement_sparsity",
    "params": {
        "warmup_start_epoch": 1,
        "warmup_end_epoch": 3,
        "importance_regularization_factor": 0.1,
        "init_importance_threshold": -8.0,
        "steps_per_epoch": 2,
    },
    "sparse_structure_by_scopes": [{"mode": "per_dim", "axis": 0, "target_scopes": "a"}],
}
PARAMS = {"a": {"kernel": jnp.ones((2, 4))}, "b": {"kernel": jnp.ones((3, 1))}}


def run(recipe, slopes):
    """States before every step, and after the last; scores are minus the sum of the slopes."""
    pruner = recipe.prune(optax.sgd(1.0))
    states = [pruner.init(PARAMS)]
    for slope in slopes:
        grads = {
            "a": {"kernel": jnp.ones((2, 1)) * slope[:4] / 2},
            "b": {"kernel": slope[4:, None]},
        }
        states.append(pruner.update(grads, states[-1], PARAMS)[1])
    return states


def test_shares_by_leaf_and_over_all():
    """Thresholds are -inf, -inf, -8, -3.375, -1, -0.125; the regularizer is off."""
    config = CONFIG | {"params": CONFIG["params"] | {"importance_regularization_factor": 0.0}}
    recipe = from_config(config, PARAMS)
    slope = jnp.array([2.0, 1.0, -1.0, 0.02, 1.0, 1.0, -1.0])
    states = run(recipe, [slope] * 8)
    said = [recipe.statistics(state) for state in states]
    assert [float(s.threshold) for s in said] == [-np.inf] * 2 + [-8, -3.375, -1, -0.125] + [0] * 3
    assert [float(s.epoch) for s in said] == [t / 2 for t in range(9)]
    ramp = [0, 0, 0, 1 - 0.75**3, 1 - 0.5**3, 1 - 0.25**3, 0, 0, 0]
    assert np.allclose([s.strength for s in said], ramp)
    # Before step t the scores are -slope * t.
    a = [s.leaves["a/kernel"] for s in said]
    assert [float(x.sparsity) for x in a] == [0, 0, 0, 0.25, 0.5, 0.5, 0.5, 0.5, 0.5]
    # From step 7 on a score lies below the -0.125 of the last choice, which is past.
    assert [float(x.expected) for x in a] == [0] + [0.5] * 8
    for state, x in zip(states, a, strict=True):
        masked = 1 - js.masks(state)["a/kernel"].mean()
        assert x.sparsity == masked and x.size == 8
    for s in said:
        a, b = s.leaves["a/kernel"], s.leaves["b/kernel"]
        np.testing.assert_allclose(s.sparsity, (8 * a.sparsity + 3 * b.sparsity) / 11, rtol=1e-6)
        np.testing.assert_allclose(s.expected, (8 * a.expected + 3 * b.expected) / 11, rtol=1e-6)


def test_the_pull_is_the_slope_of_the_regularizer_at_a_score_of_zero():
    entry = {"mode": "per_dim", "axis": 0, "target_scopes": "a"}
    entry["importance_regularization_factor"] = 0.5
    recipe = from_config(CONFIG | {"sparse_structure_by_scopes": [entry]}, PARAMS)
    pruner = recipe.prune(optax.sgd(1.0))
    state = pruner.init(PARAMS)._replace(count=jnp.asarray(5))  # 63/64 of the factor
    _, after = pruner.update(jax.tree.map(jnp.zeros_like, PARAMS), state, PARAMS)
    for path, leaf in recipe.statistics(state).leaves.items():
        np.testing.assert_allclose(after.score.scores[path], -leaf.pull * 63 / 64, rtol=1e-5)
        assert leaf.pull > 0


def test_what_is_near_is_within_the_margin():
    recipe = from_config(CONFIG, PARAMS)
    state = run(recipe, [jnp.array([4.0, 3.9, -1, 0, 4, 4, 4])] * 2)[-1]
    near = {
        margin: recipe.statistics(state, margin).leaves["a/kernel"].near for margin in (0.1, 1.0)
    }
    assert near == {0.1: 0.25, 1.0: 0.5}
    assert recipe.statistics(run(recipe, [])[0]).leaves["a/kernel"].near == 0


def test_a_threshold_that_is_still_to_be_found_does_not_hide_what_is_expected():
    options = {k: v for k, v in CONFIG["params"].items() if k != "init_importance_threshold"}
    recipe = from_config(CONFIG | {"params": options}, PARAMS)
    state = run(recipe, [jnp.array([1.0, 1, -1, -1, 1, -1, -1])])[-1]
    said = recipe.statistics(state)
    assert said.leaves["a/kernel"].sparsity == 0 and said.leaves["a/kernel"].expected == 0.5


def test_it_is_a_table_and_runs_in_jit():
    recipe = from_config(CONFIG, PARAMS)
    state = run(recipe, [jnp.arange(7.0)] * 5)[-1]
    said = jax.jit(recipe.statistics)(state)
    text = str(said)
    assert text.splitlines()[0].startswith(
        "step 5, epoch 2.50, threshold -0.125, regularization at"
    )
    table, legend = text.split("\n\n")
    first = [line.split()[0] for line in table.splitlines()[1:]]
    assert first == ["leaf", "a/kernel", "b/kernel", "all"]
    assert f"{float(said.leaves['a/kernel'].sparsity):.2%}" in text.splitlines()[2]
    for column in table.splitlines()[1].split()[2:]:
        assert f"{column}: " in legend


def test_its_first_line_says_where_in_the_warm_up_it_is():
    options = {k: v for k, v in CONFIG["params"].items() if k != "init_importance_threshold"}
    recipe = from_config(CONFIG | {"params": options}, PARAMS)
    states = run(recipe, [jnp.arange(7.0)] * 7)
    said = [str(recipe.statistics(state)).splitlines()[0] for state in states]
    assert said[1].endswith("threshold -inf, regularization not started")
    assert said[2].endswith("regularization at 0.0%")  # the first step of the warm-up
    assert said[6].endswith("threshold 0, regularization ended")
    unknown = recipe.statistics(states[1])._replace(threshold=jnp.asarray(jnp.nan))
    assert "threshold not found yet" in str(unknown)


def test_it_reads_an_optimizer_of_nnx():
    model = nnx.Sequential(nnx.Linear(4, 4, rngs=nnx.Rngs(0)))
    params = nnx.state(model, nnx.Param)
    config = CONFIG | {"sparse_structure_by_scopes": []}
    recipe = from_config(config, params)
    tx = optax.chain(recipe.prune(), optax.sgd(0.1))
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    loss = js.masked(lambda model: jnp.sum(model(jnp.ones((1, 4))) ** 2), optimizer)
    optimizer.update(model, nnx.grad(loss)(model))
    said = recipe.statistics(optimizer)
    assert said.step == 1 and set(said.leaves) == {"layers/0/kernel", "layers/0/bias"}
    assert recipe.statistics(optimizer.opt_state).step == 1


def test_the_state_of_another_recipe_over_the_same_leaves_is_an_error():
    recipe = from_config(CONFIG, PARAMS)
    fine = from_config(CONFIG | {"sparse_structure_by_scopes": []}, PARAMS)
    message = r"'a/kernel', of shape \(2, 4\), is of Unstructured.* the recipe's of Channel\(-1\)"
    with pytest.raises(RecipeError, match=message):
        recipe.statistics(fine.prune().init(PARAMS))
    with pytest.raises(RecipeError, match=message):
        jax.jit(recipe.statistics)(fine.prune().init(PARAMS))
    options = CONFIG["params"] | {"init_importance_threshold": -4.0}
    other = from_config(CONFIG | {"params": options}, PARAMS)
    with pytest.raises(RecipeError, match=r"threshold is -4.0, the recipe's -8.0; the state of a"):
        recipe.statistics(other.prune().init(PARAMS))
    del options["init_importance_threshold"]
    finds = from_config(CONFIG | {"params": options}, PARAMS)
    with pytest.raises(
        RecipeError, match=r"has .* -8.0, at step 0, the recipe finds one at step 2"
    ):
        finds.statistics(recipe.prune().init(PARAMS))
    counted = js.prune(recipe.rules, score=js.movement(), schedule=js.cubic(end=4), sparsity=0.5)
    with pytest.raises(RecipeError, match="of a schedule without importance thresholds; the state"):
        recipe.statistics(counted.init(PARAMS))
    two = (recipe.prune().init(PARAMS), recipe.prune().init(PARAMS))
    with pytest.raises(RecipeError, match="2 states of the optimizer's have masks of it"):
        recipe.statistics(two)
    entry = {"mode": "block", "sparse_factors": [4, 2], "target_scopes": "a"}
    blocks = from_config(CONFIG | {"sparse_structure_by_scopes": [entry]}, PARAMS)
    odd = {"a": {"kernel": jnp.ones((3, 5))}, "b": {"kernel": jnp.ones((3, 1))}}
    with pytest.raises(RecipeError, match=r"masks do not fit the recipe: .*'a/kernel'"):
        blocks.statistics(fine.prune().init(odd))


@pytest.mark.parametrize("margin", ["a", None, -0.1, np.nan, True])
def test_a_margin_that_is_no_number_from_zero_on_is_an_error(margin):
    recipe = from_config(CONFIG, PARAMS)
    with pytest.raises(RecipeError, match=r"margin is .*; a number from 0 on would work"):
        recipe.statistics(recipe.prune().init(PARAMS), margin)


def test_zeros_have_no_sign():
    recipe = from_config(CONFIG, PARAMS)
    said = recipe.statistics(recipe.prune().init(PARAMS))
    minus = {
        path: leaf._replace(sparsity=jnp.asarray(-0.0), expected=jnp.asarray(-1e-9))
        for path, leaf in said.leaves.items()
    }
    assert "0.00%" in str(said._replace(leaves=minus))
    assert "-0.00%" not in str(said._replace(leaves=minus))


def test_steps_are_not_inferred_in_jit():
    recipe = from_config(CONFIG, PARAMS)
    infer = jax.jit(lambda state: recipe.infer_steps_per_epoch(state).epochs)
    with pytest.raises(RecipeError, match=r"state is traced.*; a call outside jit would work"):
        infer(recipe.prune().init(PARAMS))


def test_the_state_of_another_pruner_is_an_error():
    recipe = from_config(CONFIG, PARAMS)
    other = js.prune([js.Rule("a/kernel", js.Unstructured(), 0.5)], schedule=js.one_shot())
    with pytest.raises(RecipeError, match="has a mask of 'a/kernel'; there is none"):
        recipe.statistics(other.init(PARAMS))
    with pytest.raises(RecipeError, match="has a mask of 'a/kernel'; there is none"):
        recipe.statistics(optax.sgd(0.1).init(PARAMS))
    part = from_config(CONFIG | {"ignored_scopes": ["b"]}, PARAMS).prune()
    with pytest.raises(RecipeError, match="has a mask of 'b/kernel'; did you mean 'a/kernel'"):
        recipe.statistics(part.init(PARAMS))
