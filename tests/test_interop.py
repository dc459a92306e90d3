"""Pruning inside everything that optax and flax wrap around a transformation."""

import dataclasses

import flax.linen as linen
import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest
from flax import nnx
from flax.training.train_state import TrainState
from members import (
    END,
    PATTERNS,
    SPARSITY,
    CountedJit,
    pruner_for,
    rules_for,
    slopes,
    small_params,
    step_of,
    transform_for,
)

import jaxsparse as js
from jaxsparse.trees import leaves_by_path

MEMBERS = [
    ("magnitude", "block", "none"),
    ("saliency", "unstructured", "gradient"),
    ("saliency_momentum", "nm", "none"),
    ("movement", "block", "straight_through"),
]
each_member = pytest.mark.parametrize("member", MEMBERS, ids="-".join)
exact_members = pytest.mark.parametrize(
    "member", [m for m in MEMBERS if m[2] != "straight_through"], ids="-".join
)


def run(tx, params, steps=END + 3, **extra):
    """Trains under jit, checks that nothing compiles twice, returns params and state."""
    state = jax.jit(tx.init)(params)
    step = CountedJit(step_of(tx, **extra))
    for _ in range(steps):
        params, state = step(params, state)
    assert step.traces == 1
    return params, state


def assert_pruned(params, state, exact=True):
    masks = js.masks(state)
    assert sorted(masks) == ["dense/kernel", "stack/kernel"]
    for path, mask in masks.items():
        assert abs(1 - mask.mean() - SPARSITY) < 0.01, path
        if exact:
            hidden = np.asarray(leaves_by_path(params)[path].astype(jnp.float32))[~np.asarray(mask)]
            assert (hidden == 0).all() and not np.signbit(hidden).any(), path


def assert_same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


@each_member
def test_multi_steps(member):
    """Steps are optimizer steps: two micro-batches each, and the schedule counts one."""
    tx = optax.MultiSteps(transform_for(*member), every_k_schedule=2)
    tx = tx.gradient_transformation() if member[2] != "straight_through" else tx
    params, state = run(tx, small_params(), steps=2 * (END + 2))
    assert_pruned(params, state, exact=member[2] != "straight_through")
    _, plain_state = run(transform_for(*member), small_params(), steps=END + 2)
    for path, mask in js.masks(plain_state).items():
        np.testing.assert_array_equal(mask, js.masks(state)[path])


@exact_members
def test_apply_if_finite_rejects_a_bad_step_whole(member):
    tx = optax.apply_if_finite(transform_for(*member), max_consecutive_errors=5)
    params, state = run(tx, small_params())
    bad = jax.tree.map(lambda leaf: jnp.full_like(leaf, jnp.nan), params)
    updates, after = tx.update(bad, state, params)
    assert_same(optax.apply_updates(params, updates), params)
    assert_same(js.masks(after), js.masks(state))
    assert_pruned(params, after)


def test_inject_hyperparams_steers_the_sparsity():
    rules = [dataclasses.replace(rule, sparsity=None) for rule in rules_for("block")]
    inject = optax.inject_hyperparams(js.prune, hyperparam_dtype=jnp.float32)
    tx = js.pruned(optax.sgd(1e-2), inject(rules, schedule=0.25))
    params, state = run(tx, small_params(), steps=2)
    assert np.isclose(js.masks(state)["dense/kernel"].mean(), 0.75)
    state.pruner.hyperparams["schedule"] = jnp.float32(0.5)
    _, state = tx.update(slopes(params), state, params)
    assert np.isclose(js.masks(state)["dense/kernel"].mean(), 0.5)


def test_inject_hyperparams_leaves_a_schedule_alone():
    inject = optax.inject_hyperparams(js.prune)
    pruner = inject(rules_for("block"), schedule=js.cubic(end=END, every=2))
    params, state = run(js.pruned(optax.adam(1e-2), pruner), small_params())
    assert_pruned(params, state)


@each_member
def test_partition(member):
    """One pruner for each half of the model; masks(state) merges them."""
    score, pattern, regrowth = member

    def half(path):
        [rule] = [rule for rule in rules_for(pattern) if rule.path == path]
        pruner = js.prune(
            [dataclasses.replace(rule, path=path)],
            schedule=js.cubic(end=END, every=2),
            regrowth=js.straight_through() if regrowth == "straight_through" else None,
        )
        if regrowth == "straight_through":
            return optax.chain(pruner, optax.adam(1e-2))
        return js.pruned(optax.adam(1e-2), pruner)

    labels = {"dense": {"bias": "a", "kernel": "a"}, "stack": {"kernel": "b"}}
    tx = optax.partition({"a": half("dense/kernel"), "b": half("stack/kernel")}, labels)
    params, state = run(tx, small_params())
    assert_pruned(params, state, exact=regrowth != "straight_through")
    del score


def test_masked():
    only_kernels = {"dense": {"bias": False, "kernel": True}, "stack": {"kernel": True}}
    tx = optax.masked(transform_for("magnitude", "block", "none"), only_kernels)
    assert_pruned(*run(tx, small_params()))


def test_a_partitioned_pruner_inside_pruned():
    labels = {"dense": {"bias": "rest", "kernel": "cut"}, "stack": {"kernel": "cut"}}
    pruner = optax.partition(
        {"cut": pruner_for("magnitude", "block", "none"), "rest": optax.identity()}, labels
    )
    assert_pruned(*run(js.pruned(optax.adam(1e-2), pruner), small_params()))


def test_schedule_free_needs_mask_params_on_what_it_returns():
    optimizer = optax.contrib.schedule_free_sgd(1e-2)
    tx = js.pruned(optimizer, pruner_for("magnitude", "block", "none"))
    params, state = run(tx, small_params())
    assert_pruned(params, state)
    averaged = optax.contrib.schedule_free_eval_params(state.optimizer, params)
    assert_pruned(js.mask_params(averaged, js.masks(state)), state)


def test_lookahead():
    tx = optax.lookahead(
        transform_for("magnitude", "block", "none"), sync_period=3, slow_step_size=0.5
    )
    pair = optax.LookaheadParams.init_synced(small_params())
    state = tx.init(pair)

    @CountedJit
    def step(pair, state):
        grads = slopes(js.mask_params(pair.fast, js.masks(state)))
        updates, state = tx.update(grads, state, pair)
        return optax.apply_updates(pair, updates), state

    for _ in range(END + 3):
        pair, state = step(pair, state)
    assert step.traces == 1
    assert_pruned(js.mask_params(pair.slow, js.masks(state)), state)


def test_sam():
    """Sharpness-aware minimisation in opaque mode, whose state is not blended by arithmetic."""
    outer = transform_for("magnitude", "block", "none")
    ascent = optax.chain(optax.contrib.normalize(), optax.sgd(1e-2))
    tx = optax.contrib.sam(outer, ascent, sync_period=2, opaque_mode=True)
    assert_pruned(*run(tx, small_params(), grad_fn=lambda params, _: slopes(params)))


def test_flatten_outside_is_an_error():
    tx = optax.flatten(transform_for("magnitude", "block", "none"))
    with pytest.raises(ValueError, match="matches no leaf"):
        tx.init(small_params())


@each_member
def test_map_params(member):
    """optax's tools for sharding a state find the moments and leave masks alone."""
    tx = transform_for(*member)
    params = small_params()
    state = tx.init(params)
    doubled = optax.tree.map_params(tx, lambda leaf, p: leaf + p, state, params)
    assert_same(js.masks(doubled), js.masks(state))
    moment = optax.tree.get(doubled, "mu" if member[0] != "movement" else "nu", filtering=in_adam)
    np.testing.assert_array_equal(moment["dense"]["kernel"], params["dense"]["kernel"])


def in_adam(path, _):
    return not any("MovementState" in str(key) for key in path)


@each_member
def test_unexpected_extra_arguments_pass_through(member):
    _, state = run(transform_for(*member), small_params(), steps=2, value=1.0, loss_fn=None)
    assert sorted(js.masks(state)) == ["dense/kernel", "stack/kernel"]


@exact_members
def test_chain_form_is_one_decision_behind(member):
    """Same forward passes as `pruned` (without reset); exact zeros under the masks passed."""
    chain = optax.chain(pruner_for(*member), optax.adam(1e-2), js.apply_masks())
    reference = js.pruned(optax.adam(1e-2), pruner_for(*member), reset="none")
    params = raw = small_params()
    state, raw_state = reference.init(params), chain.init(raw)
    step = jax.jit(step_of(reference))

    @CountedJit
    def chain_step(params, state):
        masks = js.masks(state)
        grads = slopes(js.mask_params(params, masks))
        updates, state = chain.update(grads, state, params, masks=masks)
        return optax.apply_updates(params, updates), state

    for _ in range(END + 3):
        seen = js.mask_params(params, js.masks(state))
        seen_raw = js.mask_params(raw, js.masks(raw_state))
        assert_same(seen, seen_raw)
        before = js.masks(raw_state)
        params, state = step(params, state)
        raw, raw_state = chain_step(raw, raw_state)
        for path, mask in before.items():
            assert not np.asarray(leaves_by_path(raw)[path].astype(jnp.float32))[~mask].any()
    assert chain_step.traces == 1
    assert_pruned(raw, raw_state)


class Net(nnx.Module):
    def __init__(self, rngs):
        self.layers = nnx.List([nnx.Linear(16, 32, rngs=rngs), nnx.Linear(32, 16, rngs=rngs)])

    def __call__(self, x):
        return self.layers[1](nnx.relu(self.layers[0](x)))


def net_loss(model, x, y):
    return jnp.mean((model(x) - y) ** 2)


@exact_members
def test_nnx_optimizer(member):
    """Pruned through nnx.Optimizer; the model's own arrays are exact zeros."""
    score, pattern, regrowth = member
    model = Net(nnx.Rngs(0))
    rules = [js.Rule(r"layers/\d/kernel", PATTERNS[pattern], SPARSITY)]
    tx = js.pruned(
        optax.adam(1e-2),
        js.prune(rules, score=js.magnitude(), schedule=js.cubic(end=END, every=2)),
    )
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    x, y = jax.random.normal(jax.random.key(1), (2, 8, 16))

    @nnx.jit
    def step(model, optimizer):
        loss, grads = nnx.value_and_grad(net_loss)(model, x, y)
        optimizer.update(model, grads)
        return loss

    losses = [float(step(model, optimizer)) for _ in range(END + 3)]
    assert losses[-1] < losses[0]
    masks = js.masks(optimizer.opt_state)
    assert sorted(masks) == ["layers/0/kernel", "layers/1/kernel"]
    for path, leaf in leaves_by_path(nnx.state(model, nnx.Param)).items():
        if path in masks:
            assert np.isclose(1 - masks[path].mean(), SPARSITY)
            assert not np.asarray(leaf)[~np.asarray(masks[path])].any()
    tree = js.masks(optimizer.opt_state, nnx.state(model, nnx.Param))
    assert tree["layers"][0]["kernel"].shape == (16, 32)
    del score, regrowth


class LinenNet(linen.Module):
    @linen.compact
    def __call__(self, x):
        return linen.Dense(16)(linen.relu(linen.Dense(32)(x)))


@exact_members
def test_flax_train_state(member):
    net = LinenNet()
    x, y = jax.random.normal(jax.random.key(1), (2, 8, 16))
    params = net.init(jax.random.key(0), x)["params"]
    rules = [js.Rule(r"Dense_\d/kernel", PATTERNS[member[1]], SPARSITY)]
    tx = js.pruned(optax.adam(1e-2), js.prune(rules, schedule=js.cubic(end=END, every=2)))
    state = TrainState.create(apply_fn=net.apply, params=params, tx=tx)

    @CountedJit
    def step(state):
        seen = js.mask_params(state.params, js.masks(state.opt_state))
        grads = jax.grad(lambda p: jnp.mean((state.apply_fn({"params": p}, x) - y) ** 2))(seen)
        return state.apply_gradients(grads=grads)

    for _ in range(END + 3):
        state = step(state)
    # The first call sees a Python step counter, the second an array.
    assert step.traces <= 2
    for path, mask in js.masks(state.opt_state).items():
        assert np.isclose(1 - mask.mean(), SPARSITY)
        assert not np.asarray(leaves_by_path(state.params)[path])[~np.asarray(mask)].any()


@each_member
def test_under_vmap_over_seeds(member):
    """An ensemble of runs: every run's masks are its own and exact."""
    tx = transform_for(*member)
    params = jax.vmap(
        lambda s: jax.tree.map(lambda p: p * (1 + s).astype(p.dtype), small_params())
    )(jnp.arange(3, dtype=jnp.float32))
    state = jax.vmap(tx.init)(params)
    step = jax.jit(jax.vmap(lambda p, s: step_of(tx)(p, s)))
    for _ in range(END + 1):
        params, state = step(params, state)
    masks = jax.vmap(lambda s: js.masks(s))(state)
    for mask in masks.values():
        np.testing.assert_allclose(1 - mask.reshape(3, -1).mean(-1), SPARSITY, atol=0.01)
