"""Whole runs of NNCF's movement sparsity, step by step: losses, thresholds, scores and masks."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxsparse as js

TRACES = {
    case["id"]: case
    for case in json.loads(
        (pathlib.Path(__file__).parents[1] / "cases/movement_trace.json").read_text()
    )["cases"]
}


def numbers(values):
    return np.asarray(values, np.float32)


def leaves(state):
    """Their weights, (out, in), as our kernels."""
    return {
        layer: {
            "kernel": jnp.asarray(numbers(state[f"{layer}.weight"]).T),
            "bias": jnp.asarray(numbers(state[f"{layer}.bias"])),
        }
        for layer in ("a", "b")
    }


def recipe_of(trace, params):
    structure = [
        entry | {"target_scopes": layer}
        for entry, layer in zip(trace["structure"], ("a", "b"), strict=True)
    ]
    config = {
        "algorithm": "movement_sparsity",
        "params": trace["params"],
        "sparse_structure_by_scopes": structure,
    }
    return js.recipes.movement.from_config(config, params)


def loss(params, x, y):
    hidden = jnp.tanh(x @ params["a"]["kernel"] + params["a"]["bias"])
    return jnp.mean((hidden @ params["b"]["kernel"] + params["b"]["bias"] - y) ** 2)


def regularizer(state, trace):
    """What NNCF adds to the loss; ours adds its gradient to that of the scores."""
    by_layer = []
    for layer, (rows, columns) in trace["sparse_factors"].items():
        sigmoid = {p: jax.nn.sigmoid(s) for p, s in state.score.scores.items()}
        kernel, bias = sigmoid[f"{layer}/kernel"].mean(), sigmoid[f"{layer}/bias"].mean()
        by_layer.append(0.5 * (kernel * rows * columns + bias * rows))
    return float(np.mean(by_layer))


@pytest.mark.parametrize("trace", TRACES.values(), ids=TRACES)
def test_runs_equal_theirs(trace):
    params = leaves(trace["weights_before"])
    recipe = recipe_of(trace, params)
    pruner = recipe.prune(optax.sgd(trace["scores_lr"]))
    tx, schedule = optax.chain(pruner, optax.sgd(trace["weights_lr"])), recipe.schedule
    state = tx.init(params)

    @jax.jit
    def step(params, state, x, y):
        value, grads = jax.value_and_grad(js.masked(loss, state))(params, x, y)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state, value

    statistics = jax.jit(recipe.statistics)
    last = trace["empties_at"]  # from there on ours keeps a group where theirs keeps none
    for facts in trace["steps"][:last]:
        t, masks, said = facts["t"], js.masks(state), statistics(state)
        for layer, kept in facts["kept"].items():
            found = [int(masks[f"{layer}/{name}"].sum()) for name in ("kernel", "bias")]
            assert found == kept, (t, layer)
            told = [said.leaves[f"{layer}/{name}"] for name in ("kernel", "bias")]
            np.testing.assert_allclose([(1 - x.sparsity) * x.size for x in told], kept, rtol=1e-5)
        for layer, theirs in facts.get("masks", {}).items():
            np.testing.assert_array_equal(masks[f"{layer}/kernel"].T, theirs["weight"], str(t))
            np.testing.assert_array_equal(masks[f"{layer}/bias"], theirs["bias"], str(t))
        np.testing.assert_allclose(said.threshold, float(facts["threshold"]), rtol=0, atol=1e-6)
        assert said.step == t
        np.testing.assert_allclose(said.epoch, t / 5, rtol=1e-6)
        penalty = recipe.regularization * float(schedule.ramp(t)) * regularizer(state[0], trace)
        np.testing.assert_allclose(penalty, facts["reg_loss"], rtol=1e-6, atol=1e-6)
        params, state, value = step(params, state, numbers(trace["x"][t]), numbers(trace["y"][t]))
        np.testing.assert_allclose(value, facts["task_loss"], rtol=0, atol=1e-6)
        # Theirs stop learning once masks are frozen; ours go on, and nothing asks them.
        for layer, theirs in facts.get("scores_after", {}).items() if t < schedule.end else ():
            ours = state[0].score.scores
            for name, scores in (("kernel", theirs["weight"]), ("bias", theirs["bias"])):
                found = np.ravel(ours[f"{layer}/{name}"].T)
                np.testing.assert_allclose(found, np.ravel(scores), rtol=0, atol=1e-6)
    if last is None:
        for path, theirs in js.leaves_by_path(leaves(trace["weights_after"])).items():
            np.testing.assert_allclose(js.leaves_by_path(params)[path], theirs, rtol=0, atol=2e-6)
