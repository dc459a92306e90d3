"""Other masks in the optimizer's state: they stay in force, and training goes on."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import jaxsparse as js

RULES = [js.Rule("up", js.Channel(-1)), js.Rule("down", js.Block(2, 2))]
X = jnp.asarray(np.random.default_rng(0).normal(size=(8, 4)), jnp.float32)
END = 5


def weights():
    rng = np.random.default_rng(1)
    shapes = {"up": (4, 6), "down": (6, 4)}
    return {name: jnp.asarray(rng.normal(size=s), jnp.float32) for name, s in shapes.items()}


def mlp(params, x):
    return jnp.tanh(x @ params["up"]) @ params["down"]


def loss(params):
    return jnp.mean((mlp(params, X) - jnp.sin(X)) ** 2)


def movement():
    schedule = js.importance_threshold(begin=1, end=END, initial=-0.1, final=0.01)
    return js.prune(RULES, score=js.movement(), schedule=schedule)


TX = optax.chain(movement(), optax.adam(1e-2))


@jax.jit
def step(params, state):
    grads = jax.grad(js.masked(loss, state))(params)
    updates, state = TX.update(grads, state, params)
    return optax.apply_updates(params, updates), state


def test_resolved_masks_stay_while_training_goes_on():
    params, structure = weights(), js.graph.structure(mlp, weights(), X)
    state: Any = TX.init(params)
    for _ in range(END):
        params, state = step(params, state)
    before, resolve = state, jax.jit(lambda state: structure.resolve(js.masks(state)))
    masks = resolve(state)
    assert not all(mask.all() for mask in masks.values())
    assert any((masks[path] & ~mask).any() for path, mask in js.masks(state).items())
    state = js.replace_masks(state, masks)
    same = jax.tree.map(
        np.array_equal,
        (state[0].count, state[0].score, *state[1:]),
        (before[0].count, before[0].score, *before[1:]),
    )
    assert all(jax.tree.leaves(same))
    # Of the same types, so that a step that was compiled before runs on it.
    assert jax.tree.map(jax.typeof, state) == jax.tree.map(jax.typeof, before)
    first, raw = float(loss(js.mask_params(params, masks))), params
    for _ in range(5):
        params, state = step(params, state)
    for path, mask in js.masks(state).items():
        np.testing.assert_array_equal(mask, masks[path])
        changed = np.asarray(params[path] != raw[path])
        assert changed[np.asarray(mask)].all()
    assert float(loss(js.mask_params(params, masks))) < first


def test_it_runs_inside_jit():
    state = TX.init(weights())
    mask = {"up": jnp.broadcast_to(jnp.arange(6) < 2, (4, 6))}
    found = jax.jit(js.replace_masks)(state, mask)
    np.testing.assert_array_equal(js.masks(found)["up"], mask["up"])
    np.testing.assert_array_equal(js.masks(found)["down"], js.masks(state)["down"])


def test_states_of_nnx_and_of_partitions():
    model = nnx.Linear(4, 6, rngs=nnx.Rngs(0))
    pruner = js.prune([js.Rule("kernel", js.Channel(-1), 0.5)], schedule=js.one_shot())
    optimizer = nnx.Optimizer(model, js.pruned(optax.adam(1e-2), pruner), wrt=nnx.Param)
    mask = {"kernel": jnp.broadcast_to(jnp.arange(6) < 2, (4, 6))}
    optimizer.opt_state = js.replace_masks(optimizer.opt_state, mask)
    np.testing.assert_array_equal(js.masks(optimizer)["kernel"], mask["kernel"])
    optimizer.update(model, nnx.state(model, nnx.Param))
    parts: Any = {
        "one": js.prune(RULES[:1], schedule=0.5),
        "other": js.prune(RULES[1:], schedule=0.5),
    }
    split = optax.partition(parts, {"up": "one", "down": "other"})
    masks = {"up": jnp.zeros((4, 6), bool), "down": jnp.zeros((6, 4), bool).at[:2, :2].set(True)}
    found = js.masks(js.replace_masks(split.init(weights()), masks))
    for path, mask in masks.items():
        np.testing.assert_array_equal(found[path], mask)


def test_errors():
    state = TX.init(weights())
    with pytest.raises(ValueError, match=r"'down' splits groups of Block\(2, 2\).*prune\(masks="):
        js.replace_masks(state, {"down": jnp.zeros((6, 4), bool).at[0].set(True)})
    with pytest.raises(ValueError, match=r"'up' has shape \(6, 4\), the leaf \(4, 6\)"):
        js.replace_masks(state, {"up": jnp.zeros((6, 4), bool)})
    with pytest.raises(KeyError, match="'upp', which is not pruned; did you mean 'up'"):
        js.replace_masks(state, {"upp": jnp.zeros((4, 6), bool)})
    with pytest.raises(ValueError, match="no PruneState"):
        js.replace_masks(optax.adam(1e-2).init(weights()), {})


@pytest.mark.parametrize("like", [jnp.float32, jnp.bfloat16, jnp.complex64])
def test_weights_are_no_masks(like):
    """What is not 0 in them would have been kept, NaN too."""
    state = TX.init(weights())
    params = {path: weight.astype(like) for path, weight in weights().items()}
    message = f"the mask of 'up' is of {jnp.dtype(like).name}, like a weight; bool would work"
    for replace in (js.replace_masks, jax.jit(js.replace_masks)):
        with pytest.raises(ValueError, match=message):
            replace(state, {"up": params["up"]})
    with pytest.raises(ValueError, match="like a weight; bool would work"):
        js.prune(RULES, masks=params).init(weights())
    with pytest.raises(ValueError, match="the mask of 'up' is a str; an array of bool"):
        js.replace_masks(state, {"up": "everything"})
    ones = {path: np.ones(weight.shape, np.int8) for path, weight in params.items()}
    assert all(mask.all() for mask in js.masks(js.replace_masks(state, ones)).values())


def test_masks_that_split_groups_go_on_by_single_weights():
    """As the docstring says: a new pruner, the optimizer's state as it was."""
    params = weights()
    state: Any = TX.init(params)
    masks = {
        path: jnp.asarray(np.random.default_rng(2).random(w.shape) < 0.5)
        for path, w in params.items()
    }
    static = js.prune(masks=masks)
    tx = optax.chain(static, optax.adam(1e-2))
    state = (static.init(params), *state[1:])
    grads = jax.grad(js.masked(loss, state))(params)
    _, state = tx.update(grads, state, params)
    for path, mask in js.masks(state).items():
        np.testing.assert_array_equal(mask, masks[path])
