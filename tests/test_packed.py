"""What a mask left out of a packed weight stays zero, whatever trains it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import jaxsparse as js
from jaxsparse.nn.nnx import SparseLinear
from tests.packed_cases import BY_NAME, STORAGES

every_storage = pytest.mark.parametrize("storage", STORAGES, ids=lambda s: s.name)


def draw(storage, shape=(70, 66), seed=0):
    """A weight with a mask that prunes within blocks, groups and whole columns."""
    rng = np.random.default_rng(seed)
    mask = storage.mask(rng, *shape, 0.6) & (rng.random(shape) < 0.7)
    mask[:, 3:8] = False
    weight = rng.standard_normal(shape).astype(np.float32)
    weight[::5] = 0  # some of what is kept starts at zero
    return weight, mask


def unpack(packed, values):
    return np.asarray(packed.with_values(values).todense())


@pytest.mark.slow
@every_storage
def test_gradients_reach_every_weight_kept_and_no_other(storage):
    weight, mask = draw(storage)
    packed = storage.pack(weight, mask)
    np.testing.assert_array_equal(packed.todense(), np.where(mask, weight, 0))
    x = jax.random.normal(jax.random.key(0), (16, 70))
    y = jax.random.normal(jax.random.key(1), (16, 66))

    def loss(packed):
        return jnp.sum(js.sparse_dot(x, packed) * y)

    expected = np.where(mask, x.T @ y, 0)

    @jax.jit
    def slopes(packed):
        by_values = jax.grad(lambda v: loss(packed.with_values(v)))(packed.values)
        whole = jax.grad(loss, allow_int=True)(packed).values
        dense = jax.grad(lambda p: jnp.vdot(p.todense(), x.T @ y), allow_int=True)(packed).values
        return by_values, whole, dense

    for found in slopes(packed):
        # Compared in place, and nothing is left where no weight is.
        np.testing.assert_allclose(unpack(packed, found), expected, rtol=1e-4, atol=1e-4)
        assert np.count_nonzero(found) == np.count_nonzero(expected)
    assert (expected[::5][mask[::5]] != 0).all()


OPTIMIZERS = {
    "sgd": optax.sgd(0.1, momentum=0.9),
    "adamw": optax.adamw(0.01, weight_decay=0.1),
    "lion": optax.lion(0.01),
    "noise": optax.noisy_sgd(0.1, key=0),
}


def check_training(packed, mask, optimizer):
    x = jax.random.normal(jax.random.key(1), (64, 32))
    run = js.sparsify(lambda w: x @ w)

    @jax.jit
    def step(values, state):
        def loss(values):
            return jnp.mean((run(packed.with_values(values)) - 1) ** 2)

        value, slopes = jax.value_and_grad(loss)(values)
        updates, state = optimizer.update(slopes, state, values)
        return optax.apply_updates(values, updates), state, value

    values, state, losses = packed.values, optimizer.init(packed.values), []
    for _ in range(5):
        values, state, value = step(values, state)
        losses.append(value)
    assert losses[-1] < losses[0]
    trained = np.asarray(packed.with_values(values).todense())
    assert not trained[~np.asarray(mask)].any()
    assert trained[np.asarray(mask)].all()


@pytest.mark.parametrize(
    ("name", "optimizer"),
    [
        ("2of4", "adamw"),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in [("2of4", "noise"), ("1of4", "lion"), ("2of4v4", "sgd")]
        ),
        pytest.param("block4x16", "adamw", marks=pytest.mark.slow),
    ],
)
def test_masked_weights_stay_masked_in_training(name, optimizer):
    weight, mask = draw(BY_NAME[name], (32, 32))
    check_training(BY_NAME[name].pack(weight, mask), mask, OPTIMIZERS[optimizer])


@pytest.mark.slow
@pytest.mark.parametrize("method", ["best", "greedy"])
def test_transposable_masks_stay_so_in_training(method):
    weight, pattern = jax.random.normal(jax.random.key(0), (32, 32)), js.NM(2, 4, method=method)
    mask = js.compute_masks({"w": weight}, [js.Rule("w", pattern)])["w"]
    packed = js.pack(weight, pattern, mask)
    assert (packed.held is None) == (method == "best")  # greedy leaves groups short
    check_training(packed, mask, OPTIMIZERS["adamw"])


@pytest.mark.slow
def test_stacks_stay_masked_in_training():
    parts = [draw(BY_NAME["2of4"], (32, 32), seed) for seed in range(2)]
    weight, mask = map(np.stack, zip(*parts, strict=True))
    check_training(js.pack(weight, js.NM(2, 4), mask, batch_axis=0), mask, OPTIMIZERS["adamw"])


@every_storage
def test_full_blocks_and_groups_need_no_bits(storage):
    pattern, mask = storage.pattern, np.ones((66, 34), bool)
    if isinstance(pattern, js.NM):
        mask[np.arange(66) % pattern.m >= pattern.n] = False
    # The edges that blocks and groups reach over are no part of the weight.
    assert storage.pack(np.ones((66, 34), np.float32), mask).held is None


def test_infinite_slopes_do_not_reach_what_is_masked():
    weight, mask = jnp.ones((4, 2)), jnp.array([[1, 0, 0, 0], [1, 1, 0, 0]], bool).T
    packed = js.pack(weight, js.NM(2, 4), mask)
    x = jnp.array([[1.0, jnp.inf, jnp.nan, 2.0]])
    slopes = jax.grad(lambda p: jnp.sum(js.sparse_dot(x, p)), allow_int=True)(packed)
    assert slopes.values[1, 0] == 0 and slopes.values[1, 1] == jnp.inf


@pytest.mark.slow
def test_what_stays_zero_is_saved_exported_and_trained_in_a_layer(tmp_path):
    weight, mask = jax.random.normal(jax.random.key(0), (32, 32)), jnp.arange(32) % 4 < 2
    mask = mask[:, None] & (jnp.arange(32) > 3)
    packed = js.pack(weight, js.NM(2, 4), mask)
    js.save_safetensors(tmp_path / "w.safetensors", {"w": packed})
    loaded = js.load_safetensors(tmp_path / "w.safetensors")["w"]
    np.testing.assert_array_equal(loaded.held, packed.held)
    x = jnp.ones((2, 32))
    exported = jax.export.export(jax.jit(js.sparse_dot))(x, packed)
    again = jax.export.deserialize(exported.serialize())
    np.testing.assert_array_equal(again.call(x, loaded), js.sparse_dot(x, packed))

    layer = SparseLinear(32, 32, loaded, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(layer, optax.adam(0.1), wrt=nnx.Param)
    for _ in range(3):
        optimizer.update(layer, nnx.grad(lambda layer: jnp.sum(layer(x) ** 2))(layer))
    assert not np.asarray(layer.packed.todense())[~np.asarray(mask)].any()
    assert (layer.packed.todense() != packed.todense()).any()


def test_bits_that_do_not_fit_are_refused():
    packed = js.pack(jnp.ones((8, 4)), js.NM(2, 4), jnp.zeros((8, 4), bool))
    with pytest.raises(ValueError, match=r"held has shape \(3,\), needs \(1,\)"):
        js.NMSparse(packed.values, packed.positions, 2, 4, (8, 4), held=np.zeros(3, np.uint32))


@pytest.mark.parametrize(
    "use",
    [
        lambda x, w: x @ w,
        lambda x, w: w @ x.T,
        lambda x, w: np.asarray(x) @ w,
        lambda x, w: jnp.dot(x, w),
        lambda x, w: jnp.einsum("ij,jk", x, w),
        lambda x, w: jnp.take(w, jnp.arange(2), axis=0),
        lambda x, w: w[...],
        lambda x, w: 2 * w + 1,
        lambda x, w: jnp.asarray(w),
        lambda x, w: np.asarray(w),
    ],
)
def test_a_packed_weight_used_as_an_array_says_what_would_work(use):
    packed, x = js.pack(np.eye(8, dtype=np.float32), js.Block(4, 4)), jnp.ones((2, 8))
    with pytest.raises(TypeError, match=r"packed weight, not an array: js\.sparsify\(function\)"):
        use(x, packed)
