"""Penalties against autodiff and numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxsparse as js

PATTERNS = {
    "block": js.Block(4, 2),
    "padded": js.Block(3, 5, pad=True),
    "channel": js.Channel(0),
    "unstructured": js.Unstructured(),
}


def blocks(shape, name):
    """Index arrays of the groups of an (8, 6) kernel."""
    k, n = shape
    rows, columns = {"block": (4, 2), "padded": (3, 5), "channel": (1, n), "unstructured": (1, 1)}[
        name
    ]
    return [
        (slice(i, i + rows), slice(j, j + columns))
        for i in range(0, k, rows)
        for j in range(0, n, columns)
    ]


@pytest.fixture
def weights():
    w = np.random.default_rng(0).normal(size=(8, 6))
    w[:4, :2] = 0  # a whole group of zeros
    w[5, 3] = 0  # and one zero in a group that lives
    return w


@pytest.mark.parametrize("name", PATTERNS)
def test_group_lasso_is_the_gradient_of_the_norms(name, weights):
    rules, alpha = [js.Rule("w", PATTERNS[name])], 6e-3
    grad = np.random.default_rng(1).normal(size=(8, 6))

    def penalty(w):
        squares = jnp.stack([jnp.sum(jnp.square(w[at])) for at in blocks((8, 6), name)])
        return alpha * jnp.sum(jnp.sqrt(jnp.where(squares > 0, squares, 1.0)))

    with jax.enable_x64(True):
        params, grads = {"w": jnp.asarray(weights)}, {"w": jnp.asarray(grad)}
        tx = js.add_group_lasso(alpha, rules)
        got = np.asarray(jax.jit(tx.update)(grads, tx.init(params), params)[0]["w"])
        expected = grad + np.asarray(jax.grad(penalty)(params["w"]))
    np.testing.assert_allclose(got, expected, atol=1e-14)
    assert (got[weights == 0] == grad[weights == 0]).all()  # the subgradient at zero is zero


def test_zero_initialised_weights_train_under_every_penalty():
    target, rules = {"w": jnp.ones((4, 4))}, [js.Rule("w", js.Block(2, 2))]
    for penalty in (js.add_group_lasso(1e-9, rules), js.add_l1(1e-9, rules)):
        tx, params = optax.chain(penalty, optax.sgd(0.5)), {"w": jnp.zeros((4, 4))}
        updates, _ = tx.update(jax.tree.map(jnp.subtract, params, target), tx.init(params), params)
        np.testing.assert_allclose(updates["w"], 0.5)


def test_masked_weights_stay_zero_beside_a_group_lasso():
    """By the mask alone: gradients pull at every weight, also at those in living groups."""
    rules = [js.Rule("w", js.Unstructured(), 0.5)]
    lasso = js.add_group_lasso(1e-2, [js.Rule("w", js.Block(2, 2))])
    tx = js.pruned(optax.chain(lasso, optax.adam(0.1)), js.prune(rules, schedule=js.one_shot()))
    params = {"w": jax.random.normal(jax.random.key(0), (8, 8))}
    state = tx.init(params)
    for _ in range(4):
        updates, state = tx.update({"w": jnp.ones((8, 8))}, state, params)
        params = optax.apply_updates(params, updates)
        np.testing.assert_array_equal(params["w"] != 0, js.masks(state)["w"])
        assert (params["w"] == 0).sum() == 32


COMPLEX = jnp.array([[0.1 + 10j, 1 + 0j, 0j], [-2 + 0j, 3 + 4j, 0j]], jnp.complex64)


@pytest.mark.parametrize("pattern", [js.Block(1, 1), js.Block(2, 3), js.Channel(0)], ids=str)
def test_complex_weights_are_penalised_by_modulus(pattern):
    params, still = {"w": COMPLEX}, {"w": jnp.zeros_like(COMPLEX)}
    w, rules = np.asarray(COMPLEX, np.complex128), [js.Rule("w", pattern)]
    axes = {"Block(1, 1)": (), "Block(2, 3)": (0, 1), "Channel(0)": (1,)}[str(pattern)]
    norms = np.sqrt((np.abs(w) ** 2).sum(axis=axes, keepdims=True)) * np.ones(w.shape)
    safe = np.where(norms > 0, norms, 1)

    def update(tx):
        return np.asarray(tx.update(still, tx.init(params), params)[0]["w"])

    lasso = update(js.add_group_lasso(1.0, rules))
    np.testing.assert_allclose(lasso, w / safe, rtol=1e-5)
    size = np.prod([w.shape[axis] for axis in axes])
    shrunk = np.maximum(0, 1 - 0.5 * np.sqrt(size) / safe) * w
    np.testing.assert_allclose(w + update(js.prox_group_lasso(1.0, 0.5, rules)), shrunk, rtol=1e-4)
    l1 = update(js.add_l1(1.0, rules))
    np.testing.assert_allclose(l1, w / np.where(w == 0, 1, np.abs(w)), rtol=1e-5)


def test_gradients_that_do_not_fit_are_named():
    params, tx = {"w": jnp.ones((4, 4))}, js.add_l1(1.0, [js.Rule("w", js.Unstructured())])
    with pytest.raises(ValueError, match=r"gradient of 'w' has shape \(4,\), the leaf \(4, 4\)"):
        tx.update({"w": jnp.ones(4)}, tx.init(params), params)
    with pytest.raises(ValueError, match=r"no gradient for leaf 'w'; known: 'v'"):
        tx.update({"v": jnp.ones(4)}, tx.init(params), params)


def test_group_lasso_of_bf16_and_leaves_without_rule():
    params = {"w": jnp.full((4, 4), 3, jnp.bfloat16), "b": jnp.ones(3)}
    tx = js.add_group_lasso(0.4, [js.Rule("w", js.Block(4, 4))])
    updates, _ = tx.update(params, tx.init(params), params)
    assert updates["w"].dtype == jnp.bfloat16
    np.testing.assert_allclose(updates["w"].astype(jnp.float32), 3.1, atol=0.01)
    assert updates["b"] is params["b"]


def numpy_prox(v, name, threshold):
    out = np.zeros_like(v)
    for at in blocks(v.shape, name):
        norm, size = np.linalg.norm(v[at]), v[at].size
        if norm > 0:
            out[at] = max(0.0, 1 - threshold * np.sqrt(size) / norm) * v[at]
    return out


@pytest.mark.parametrize("name", PATTERNS)
def test_prox_is_the_shrinkage_of_the_proposed_weights(name, weights):
    update = np.random.default_rng(2).normal(size=(8, 6)) * 0.3
    rules = [js.Rule("w", PATTERNS[name])]
    with jax.enable_x64(True):
        params, updates = {"w": jnp.asarray(weights)}, {"w": jnp.asarray(update)}
        tx = js.prox_group_lasso(0.5, 1.2, rules)
        change, _ = jax.jit(tx.update)(updates, tx.init(params), params)
        got = np.asarray(optax.apply_updates(params, change)["w"])
    expected = numpy_prox(weights + update, name, 0.6)
    assert 0 < (expected == 0).sum() < 48
    np.testing.assert_allclose(got, expected, atol=1e-14)
    assert (got[expected == 0] == 0).all() and not np.signbit(got[expected == 0]).any()


def stepper(tx):
    """A step without a loss."""

    @jax.jit
    def step(params, state):
        updates, state = tx.update(jax.tree.map(jnp.zeros_like, params), state, params)
        return optax.apply_updates(params, updates), state

    return step


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_prox_reaches_exact_zero_and_stays(dtype):
    rng = np.random.default_rng(3)
    params = {"w": jnp.asarray(rng.normal(size=(8, 6)), dtype) * 0.1}
    tx = optax.chain(optax.sgd(0.1), js.prox_group_lasso(0.1, 0.2, [js.Rule("w", js.Block(4, 2))]))
    state, zeros = tx.init(params), []
    step = stepper(tx)
    for _ in range(12):
        params, state = step(params, state)
        zeros.append(int((params["w"] == 0).sum()))
    assert zeros[0] < 48 and zeros == sorted(zeros) and zeros[-1] == 48
    assert not np.signbit(np.asarray(params["w"], np.float32)).any()
    gradient = optax.chain(js.add_group_lasso(0.2, [js.Rule("w", js.Block(4, 2))]), optax.sgd(0.1))
    params = {"w": jnp.full((8, 6), 0.31)}
    state, step = gradient.init(params), stepper(gradient)
    for _ in range(40):  # a subgradient steps over zero for ever
        params, state = step(params, state)
    assert (params["w"] != 0).all()


def test_prox_follows_a_learning_rate_schedule():
    params = {"w": jnp.full((2, 2), 1.0)}
    rates = optax.piecewise_constant_schedule(0.1, {1: 0.5})
    tx = js.prox_group_lasso(rates, 2.0, [js.Rule("w", js.Block(2, 2))])
    state, seen = tx.init(params), []
    for _ in range(3):
        updates, state = tx.update({"w": jnp.zeros((2, 2))}, state, params)
        seen.append(float(updates["w"][0, 0]))
    # sqrt(4) / ||1|| = 1, so the factor is 1 - 2 * rate
    np.testing.assert_allclose(seen, [-2 * float(rates(t)) for t in range(3)], rtol=1e-6)
    assert seen[0] != seen[2] and int(state.count) == 3


def test_l1_is_the_sign():
    params = {"w": jnp.asarray([[2.0, -3.0, 0.0, -0.0]])}
    grads = {"w": jnp.asarray([[1.0, 1.0, 1.0, 1.0]])}
    for pattern in (js.Unstructured(), js.NM(1, 1 + 1, pad=True)):
        tx = js.add_l1(0.25, [js.Rule("w", pattern)])
        updates, _ = tx.update(grads, tx.init(params), params)
        assert updates["w"].tolist() == [[1.25, 0.75, 1.0, 1.0]]


FACTORIES = {
    "add_group_lasso": lambda alpha, rules: js.add_group_lasso(alpha, rules),
    "prox_group_lasso": lambda alpha, rules: js.prox_group_lasso(0.1, alpha, rules),
    "add_l1": lambda alpha, rules: js.add_l1(alpha, rules),
}


@pytest.mark.parametrize("name", FACTORIES)
def test_errors(name):
    rules, params = [js.Rule("w", js.Unstructured())], {"w": jnp.ones((4, 4))}
    with pytest.raises(ValueError, match=f"{name}: alpha=-1 is negative"):
        FACTORIES[name](-1, rules)
    tx = FACTORIES[name](0.1, rules)
    with pytest.raises(ValueError, match=f"{name} needs the parameters"):
        tx.update(params, tx.init(params))
    with pytest.raises(ValueError, match="matches no leaf"):
        tx.init({"v": jnp.ones(2)})
    if name != "add_l1":
        with pytest.raises(ValueError, match=rf"{name}: NM.*'w'.*Block\(4, 1\)"):
            FACTORIES[name](0.1, [js.Rule("w", js.NM(2, 4))]).init(params)
