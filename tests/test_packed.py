"""What a mask left out of a packed weight stays zero, whatever trains it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import jaxsparse as js
from jaxsparse.nn.nnx import SparseLinear
from tests.packed_cases import STORAGES

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

    def loss(w, packed):
        return jnp.sum(js.sparse_dot(x, packed) * y)

    expected = np.where(mask, x.T @ y, 0)
    by_values = jax.grad(lambda v: loss(v, packed.with_values(v)))(packed.values)
    whole = jax.grad(loss, 1, allow_int=True)(None, packed).values
    dense = jax.grad(lambda p: jnp.vdot(p.todense(), x.T @ y), allow_int=True)(packed).values
    for slopes in (by_values, whole, dense):
        # Compared in place, and nothing is left where no weight is.
        np.testing.assert_allclose(unpack(packed, slopes), expected, rtol=1e-4, atol=1e-4)
        assert np.count_nonzero(slopes) == np.count_nonzero(expected)
    assert (expected[::5][mask[::5]] != 0).all()


PATTERNS = {
    "2:4": (js.NM(2, 4), None),
    "best": (js.NM(2, 4, method="best"), None),
    "greedy": (js.NM(2, 4, method="greedy"), None),
    "1:4": (js.NM(1, 4), None),
    "block": (js.Block(4, 16, pad=True), 0.5),
    "single": (js.Unstructured(), 0.5),
}
OPTIMIZERS = {
    "sgd": optax.sgd(0.1, momentum=0.9),
    "adamw": optax.adamw(0.01, weight_decay=0.1),
    "lion": optax.lion(0.01),
    "noise": optax.noisy_sgd(0.1, key=0),
}


@pytest.mark.parametrize(
    ("name", "optimizer"),
    [
        ("greedy", "adamw"),
        pytest.param("2:4", "noise", marks=pytest.mark.slow),
        *(pytest.param(n, "adamw", marks=pytest.mark.slow) for n in ("2:4", "best", "1:4")),
        *(pytest.param(n, "sgd", marks=pytest.mark.slow) for n in ("block", "single", "stack")),
        pytest.param("2:4", "lion", marks=pytest.mark.slow),
    ],
)
def test_masked_weights_stay_masked_in_training(name, optimizer):
    optimizer = OPTIMIZERS[optimizer]
    shape = (2, 32, 32) if name == "stack" else (32, 32)
    pattern, sparsity = PATTERNS.get(name, PATTERNS["2:4"])
    weight = jax.random.normal(jax.random.key(0), shape)
    mask = js.compute_masks({"w": weight}, [js.Rule("w", pattern, sparsity)])["w"]
    mask = mask & (jnp.arange(32) >= 4)
    axes = {"batch_axis": 0} if name == "stack" else {}
    packed = js.pack(weight, pattern, mask, **axes)
    x = jax.random.normal(jax.random.key(1), (64, 32))

    def loss(values):
        run = js.sparsify(lambda w: x @ w)
        return jnp.mean((run(packed.with_values(values)) - 1) ** 2)

    values, state = packed.values, optimizer.init(packed.values)
    before = loss(values)
    for _ in range(5):
        updates, state = optimizer.update(jax.grad(loss)(values), state, values)
        values = optax.apply_updates(values, updates)
    assert loss(values) < before
    trained = packed.with_values(values)
    assert not np.asarray(trained.todense())[~np.asarray(mask)].any()
    assert js.unpack(trained)[mask].all()


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
