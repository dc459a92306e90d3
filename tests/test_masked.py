"""`masked`: the loss of the masked weights, for nnx, linen and plain trees."""

import warnings

import flax.linen as linen
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.training.train_state import TrainState
from members import CountedJit

import jaxsparse as js
from jaxsparse.trees import leaves_by_path

X, Y = jax.random.normal(jax.random.key(0), (2, 16, 8))


class Net(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.Linear(8, 8, rngs=rngs)
        self.again = self.first
        self.norm = nnx.BatchNorm(8, rngs=rngs)
        self.drop = nnx.Dropout(0.2, rngs=rngs)
        self.layers = nnx.List([nnx.Linear(8, 8, rngs=rngs)])

    def __call__(self, x):
        x = self.again(self.drop(self.norm(self.first(x))))
        return self.layers[0](nnx.relu(x))


def net_loss(model, x, y):
    return jnp.mean((model(x) - y) ** 2)


def masks_for(tree, pattern=".*kernel"):
    return js.compute_masks(tree, [js.Rule(pattern, js.Unstructured(), 0.5)])


def reference_gradients(loss, params, masks):
    """Taken at the masked weights, with respect to them: dense."""
    return jax.grad(loss)(js.mask_params(params, masks))


def test_value_and_gradients_are_those_at_the_masked_weights():
    params = {"a": {"kernel": X}, "b": jnp.ones(8)}
    masks = masks_for(params)

    def loss(params, scale):
        return scale * jnp.sum(jnp.tanh(params["a"]["kernel"] + params["b"]) ** 2)

    seen = js.masked(loss, masks)
    value, grads = jax.jit(jax.value_and_grad(seen))(params, 2.0)
    expected = js.mask_params(params, masks)
    np.testing.assert_allclose(value, loss(expected, 2.0), rtol=1e-6)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        grads,
        jax.grad(loss)(expected, 2.0),
    )
    assert (grads["a"]["kernel"][~masks["a/kernel"]] != 0).all()
    _, tangent = jax.jvp(lambda p: seen(p, 2.0), (params,), (params,))  # forward mode too
    products = jax.tree.map(lambda g, p: (g * p).sum(), grads, params)
    np.testing.assert_allclose(tangent, sum(jax.tree.leaves(products)), rtol=1e-4)


def test_a_masked_nan_is_not_seen():
    params = {"w": jnp.array([jnp.nan, 2.0])}
    seen = js.masked(lambda p: jnp.sum(p["w"] ** 2), {"w": jnp.array([False, True])})
    value, grads = jax.value_and_grad(seen)(params)
    assert value == 4 and grads["w"].tolist() == [0, 4]


@pytest.mark.parametrize("jit", [False, True], ids=["eager", "jit"])
def test_nnx_changes_survive_and_weights_stay(jit):
    """Batch statistics and dropout counters move as without masks; kernels do not."""
    models = [Net(nnx.Rngs(0)) for _ in range(2)]
    raw = nnx.state(models[0], nnx.Param)
    masks = masks_for(raw)
    nnx.update(models[1], js.mask_params(raw, masks))

    def step(model, loss):
        return nnx.value_and_grad(loss, has_aux=True)(model, X, Y)

    def loss(model, x, y):
        return net_loss(model, x, y), model.norm.mean[...]

    steps = [lambda m: step(m, js.masked(loss, masks)), lambda m: step(m, loss)]
    if jit:
        steps = [nnx.jit(f) for f in steps]
    ours, theirs = (run(model) for run, model in zip(steps, models, strict=True))
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    for path, leaf in leaves_by_path(nnx.state(models[0], nnx.Param)).items():
        np.testing.assert_array_equal(leaf, leaves_by_path(raw)[path])
    ours, theirs = (nnx.state(m, nnx.BatchStat, nnx.RngCount) for m in models)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)
    assert (models[0].norm.mean[...] != 0).any() and models[0].drop.rngs.count[...] == 1


def test_the_weights_come_back_when_the_loss_fails():
    model = Net(nnx.Rngs(0))
    kernel = model.first.kernel[...]

    def broken(model):
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        js.masked(broken, masks_for(nnx.state(model, nnx.Param)))(model)
    np.testing.assert_array_equal(model.first.kernel[...], kernel)


def straight_through(path):
    rules = [js.Rule(path, js.Unstructured(), 0.5)]
    return js.prune(rules, schedule=js.one_shot(), regrowth=js.straight_through())


def test_straight_through_with_nnx_optimizer_trains_what_is_kept():
    """The stored weights stay dense, and the loss of the masked ones falls."""
    model = Net(nnx.Rngs(0))
    tx = optax.chain(straight_through(".*kernel"), optax.adam(1e-2))
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer):
        loss, grads = nnx.value_and_grad(js.masked(net_loss, optimizer))(model, X, Y)
        optimizer.update(model, grads)
        return loss

    losses = [float(step(model, optimizer)) for _ in range(30)]
    assert losses[-1] < 0.7 * losses[1]
    assert (model.first.kernel[...] != 0).all()
    masks = js.masks(optimizer)
    assert sorted(masks) == ["again/kernel", "layers/0/kernel"]
    assert all(mask.mean() == 0.5 for mask in masks.values())


class Linen(linen.Module):
    @linen.compact
    def __call__(self, x):
        return linen.Dense(8)(linen.relu(linen.Dense(8)(x)))


def test_linen_with_a_train_state():
    net = Linen()
    params = net.init(jax.random.key(0), X)["params"]
    tx = optax.chain(straight_through(r"Dense_\d/kernel"), optax.sgd(0.1))
    state = TrainState.create(apply_fn=net.apply, params=params, tx=tx)

    def loss(params, x, y):
        return jnp.mean((net.apply({"params": params}, x) - y) ** 2)

    @CountedJit
    def step(state):
        return state.apply_gradients(grads=jax.grad(js.masked(loss, state))(state.params, X, Y))

    for _ in range(3):
        expected = reference_gradients(lambda p: loss(p, X, Y), state.params, js.masks(state))
        after = step(state)
        for path, leaf in leaves_by_path(after.params).items():
            before, slope = leaves_by_path(state.params)[path], leaves_by_path(expected)[path]
            np.testing.assert_allclose(leaf, before - 0.1 * slope, rtol=1e-4, atol=1e-6)
        state = after


def test_what_does_not_fit_is_named():
    seen = js.masked(lambda p: 0.0, {"w": jnp.ones(3, bool)})
    with pytest.raises(KeyError, match="mask for 'w', but no such leaf; known: 'v'"):
        seen({"v": jnp.ones(3)})
    with pytest.raises(ValueError, match=r"mask of 'w' has shape \(3,\), the leaf \(4,\)"):
        seen({"w": jnp.ones(4)})
    with pytest.raises(KeyError, match="mask for 'w', but no such leaf"):
        seen(Net(nnx.Rngs(0)))


W = {"w": jnp.ones(3)}


@pytest.mark.parametrize(
    "state,words",
    [
        (optax.adam(0.1).init(W), r"no PruneState, and '0/count' is no mask but .*int32"),
        (optax.sgd(0.1, 0.9).init(W), r"no PruneState, and '0/trace/w' is no mask"),
        (optax.sgd(0.1).init(W), r"neither masks nor a PruneState in \(EmptyState\(\)"),
        (None, "neither masks nor a PruneState in None"),
        (W, r"'w' is no mask but .*float32.*prune\(\.\.\.\), or {path: mask}"),
    ],
    ids=["adam", "momentum", "sgd", "nothing", "weights"],
)
def test_what_holds_no_masks_is_said_at_once(state, words):
    with pytest.raises(ValueError, match=words):
        js.masked(lambda p: 0.0, state)


def test_the_loss_comes_first():
    state = straight_through("w").init(W)
    with pytest.raises(TypeError, match=r"PruneState is no function.*masked\(loss, opt_state\)"):
        js.masked(state, lambda p: 0.0)  # pyright: ignore


def test_masks_of_numbers_and_no_masks_will_do():
    loss = js.masked(lambda p: p["w"].sum(), {"w": np.array([0, 1, 1])})
    assert loss(W) == 2 and js.masked(lambda p: p["w"].sum(), {})(W) == 3


def dense_step(tx, params):
    return tx.update(params, tx.init(params), params)


@pytest.mark.parametrize(
    "build,traced",
    [
        (lambda path: straight_through(path), False),
        (
            lambda path: js.prune(
                [js.Rule(path, js.Unstructured())],
                score=js.movement(),
                schedule=js.importance_threshold(begin=1, end=5),
            ),
            False,
        ),
        (
            lambda path: js.prune(
                [js.Rule(path, js.Unstructured(), 0.5)], schedule=js.cubic(end=5)
            ),
            True,
        ),
    ],
    ids=["straight_through", "importance_threshold", "chain"],
)
def test_training_dense_is_said_once(build, traced, request):
    path = request.node.name
    params = {path: jnp.ones((4, 4))}
    tx = optax.chain(build(".*"), optax.sgd(0.1))
    step = jax.jit(lambda p: dense_step(tx, p)) if traced else lambda p: dense_step(tx, p)
    with pytest.warns(UserWarning, match=r"seen 'test_.*js\.masked\(loss, opt_state\)"):
        step(params)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        step(params)


def test_masked_forward_passes_are_not_warned_of(request):
    path = request.node.name

    def run(size, update):
        params = {path: jnp.ones((size, 4))}
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            update(params)

    tx = optax.chain(straight_through(".*"), optax.sgd(0.1))

    def with_masked(params):
        state = tx.init(params)
        grads = jax.grad(js.masked(lambda p: jnp.sum(p[path] ** 2), state))(params)
        tx.update(grads, state, params)

    def by_hand(params):
        state = tx.init(params)
        tx.update(js.mask_params(params, js.masks(state)), state, params)

    def reference(params):
        rules = [js.Rule(".*", js.Unstructured(), 0.5)]
        dense_step(js.pruned(optax.sgd(0.1), js.prune(rules, schedule=js.one_shot())), params)

    def chain(params):
        rules = [js.Rule(".*", js.Unstructured(), 0.5)]
        tail = optax.chain(js.prune(rules, schedule=js.one_shot()), js.apply_masks())
        state = tail.init(params)
        jax.jit(tail.update)(params, state, params, masks=js.masks(state))

    for size, update in enumerate((with_masked, by_hand, reference, chain), 2):
        run(size, update)
