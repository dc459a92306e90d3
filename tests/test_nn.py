"""Layers that start packed, and surgery."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx

import jaxsparse as js
from jaxsparse.nn.linen import SparseDense
from jaxsparse.nn.nnx import SparseLinear

LAYERS = {
    "block": (js.Block(4, 16), 0.75),
    "bitmap": (js.Unstructured(), 0.6),
    "csc": (js.Unstructured(), 0.9),
    "nm": (js.NM(2, 4), None),
}
every_layer = pytest.mark.parametrize(("pattern", "sparsity"), LAYERS.values(), ids=LAYERS)


@every_layer
@pytest.mark.parametrize("shape", [(32, 48), (270, 66)])
def test_random_structures_are_valid_and_of_the_size_asked_for(pattern, sparsity, shape):
    draw = jax.jit(lambda key: js.nn.random_structure(key, shape, pattern, sparsity))
    structure = draw(jax.random.key(0))
    structure._check()
    layout = structure.layout
    dense = jax.random.normal(jax.random.key(1), shape)
    packed = structure.with_values(structure.gather(dense))
    restored = packed.todense()
    np.testing.assert_array_equal(restored, jnp.where(restored != 0, dense, 0))
    if sparsity:
        groups = np.prod(layout.padded) / np.prod(getattr(layout, "block", (1, 1)))
        assert layout.nnz == groups - round(sparsity * groups)
    assert not all(
        np.array_equal(a, b)
        for a, b in zip(structure.index, draw(jax.random.key(1)).index, strict=True)
    )


def fit(loss, params, steps=60):
    tx = optax.adam(0.02)
    state = tx.init(params)

    @jax.jit
    def step(params, state):
        value, grads = jax.value_and_grad(loss)(params)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state, value

    first = None
    for _ in range(steps):
        params, state, value = step(params, state)
        first = value if first is None else first
    return first, value, state


@every_layer
def test_sparse_dense_trains_packed(pattern, sparsity):
    model = linen.Sequential(
        [SparseDense(32, pattern, sparsity), jnp.tanh, SparseDense(16, pattern, sparsity)]
    )
    x = jax.random.normal(jax.random.key(0), (64, 32))
    variables = jax.jit(model.init)(jax.random.key(1), x)
    params, structure = variables["params"], variables["structure"]

    def loss(params):
        y = model.apply({"params": params, "structure": structure}, x)
        return jnp.mean((y - x[:, :16]) ** 2)

    first, last, state = fit(loss, params)
    assert last < 0.7 * first
    kept = sum(p.size for p in jax.tree.leaves(params))
    assert sum(s.size for s in jax.tree.leaves(state)) <= 2 * kept + 2
    assert kept < 0.6 * (32 * 32 + 32 * 16) + 48


@every_layer
def test_sparse_linear_trains_packed(pattern, sparsity):
    rngs = nnx.Rngs(0)
    model = nnx.Sequential(
        SparseLinear(32, 32, pattern, sparsity, rngs=rngs),
        jnp.tanh,
        SparseLinear(32, 16, pattern, sparsity, rngs=rngs),
    )
    optimizer = nnx.Optimizer(model, optax.adam(0.02), wrt=nnx.Param)
    x = jax.random.normal(jax.random.key(0), (64, 32))

    @nnx.jit
    def step(model, optimizer, x):
        def loss(model):
            return jnp.mean((model(x) - x[:, :16]) ** 2)

        value, grads = nnx.value_and_grad(loss)(model)
        optimizer.update(model, grads)
        return value

    values = [step(model, optimizer, x) for _ in range(60)]
    assert values[-1] < 0.7 * values[0]


@every_layer
def test_layers_agree_with_dense_ones(pattern, sparsity):
    x = jax.random.normal(jax.random.key(0), (4, 32))
    layer = SparseLinear(
        32, 16, pattern, sparsity, kernel_init=nnx.initializers.ones, rngs=nnx.Rngs(0)
    )
    dense = layer.packed.todense()
    assert set(np.unique(dense)) <= {0, 1}
    np.testing.assert_allclose(layer(x), x @ dense, rtol=1e-4, atol=1e-5)
    half = SparseLinear(32, 16, pattern, sparsity, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    assert half(x).dtype == jnp.bfloat16
    bare = SparseDense(16, pattern, sparsity, use_bias=False)
    assert set(bare.init(jax.random.key(0), x)["params"]) == {"kernel"}


class Net(nnx.Module):
    def __init__(self, rngs):
        self.blocks = nnx.List([nnx.Linear(32, 32, rngs=rngs) for _ in range(2)])
        self.head = nnx.Linear(32, 16, use_bias=False, rngs=rngs)
        self.norm = nnx.LayerNorm(32, rngs=rngs)

    def __call__(self, x):
        for block in self.blocks:
            x = self.norm(jnp.tanh(block(x)))
        return self.head(x)


RULES = [
    js.Rule(r"blocks/\d/kernel", js.Block(4, 16), sparsity=0.5),
    js.Rule("head/kernel", js.NM(2, 4)),
]


def test_surgery_on_nnx_keeps_the_best():
    model, x = Net(nnx.Rngs(0)), jnp.ones((4, 32))
    before = model(x)
    new, surgery = js.nn.replace(model, RULES)
    np.testing.assert_array_equal(model(x), before)
    assert [type(b) for b in new.blocks] == [SparseLinear] * 2
    assert isinstance(new.head, SparseLinear) and new.head.bias is None
    params = nnx.state(model, nnx.Param)
    masked = js.mask_params(params, js.compute_masks(params, RULES))
    reference = nnx.merge(nnx.split(model, nnx.Param, ...)[0], masked)
    np.testing.assert_allclose(new(x), reference(x), rtol=1e-4, atol=1e-5)
    assert surgery.before == 2 * (32 * 32 + 32) + 32 * 16 + 64
    assert surgery.after == 2 * (32 * 32 // 2 + 32) + 32 * 16 // 2 + 64
    found = sum(p.size for p in jax.tree.leaves(nnx.state(new, nnx.Param)))
    assert surgery.after == found
    assert "whole model" in str(surgery) and "blocks/1/kernel" in str(surgery)


def test_surgery_from_scratch():
    model = Net(nnx.Rngs(0))
    new, surgery = js.nn.replace(model, RULES, keep="none", seed=3)
    old, _ = js.nn.replace(model, RULES)
    assert surgery.after < surgery.before
    assert not np.array_equal(new.head.kernel[...], old.head.kernel[...])
    assert np.isfinite(new(jnp.ones((4, 32)))).all()


def test_surgery_on_a_tree_of_parameters():
    model = linen.Sequential([linen.Dense(32), jnp.tanh, linen.Dense(16)])
    x = jax.random.normal(jax.random.key(0), (4, 32))
    params = model.init(jax.random.key(1), x)
    rules = [js.Rule("params/layers_./kernel", js.Block(4, 16), sparsity=0.5)]
    for keep in ("best", "none"):
        packed, surgery = js.nn.replace(params, rules, keep=keep)
        assert [r.after for r in surgery.replaced] == [512, 256]
        assert js.sparsify(model.apply, on_dense="error")(packed, x).shape == (4, 16)


def test_surgery_that_cannot_be_done():
    with pytest.raises(ValueError, match=r"'norm/scale' is not the kernel of an nnx.Linear"):
        js.nn.replace(Net(nnx.Rngs(0)), [js.Rule("norm/scale", js.Unstructured(), 0.5)])
    with pytest.raises(ValueError, match="matches no leaf"):
        js.nn.replace(Net(nnx.Rngs(0)), [js.Rule("tail/kernel", js.Unstructured(), 0.5)])
    with pytest.raises(ValueError, match="keep='some'"):
        js.nn.replace(Net(nnx.Rngs(0)), RULES, keep="some")


def test_structures_that_cannot_be():
    key = jax.random.key(0)
    with pytest.raises(ValueError, match="sparsity=None"):
        js.nn.random_structure(key, (8, 8), js.Block(4, 4))
    with pytest.raises(ValueError, match="own sparsity"):
        js.nn.random_structure(key, (8, 8), js.NM(2, 4), 0.9)
    with pytest.raises(TypeError, match="Channel"):
        js.nn.random_structure(key, (8, 8), js.Channel(-1), 0.5)


@pytest.mark.parametrize("sparsity", [None, 1 / 3, 1 - 2 / 3])
def test_the_sparsity_of_nm_may_be_rounded(sparsity):
    structure = js.nn.random_structure(jax.random.key(0), (6, 3), js.NM(2, 3), sparsity)
    assert structure.density == 2 / 3
