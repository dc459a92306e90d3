"""Layers and networks on sparse tensors, in both Flaxes."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from experiments.models.clouds import CloudClassifier, MinkUNet
from jaxsparse import activations as act
from jaxsparse.nn import clouds

BOX = act.Bounds(2, (0, 0), (8, 8))


def drawn(seed=0):
    rng = np.random.default_rng(seed)
    rows = np.unique(rng.integers(0, 8, (45, 3)) % (2, 8, 8), axis=0)
    values = rng.normal(size=(len(rows), 3)).astype(np.float32)
    return act.sparse_tensor(rng.permutation(rows), values, BOX, capacity=64)


OPTIONS = {
    "SparseConv": dict(kernel_size=(3, 3)),
    "SparseConv floor": dict(kernel_size=(2, 2), strides=2, outputs="floor"),
    "SparseConvTranspose": dict(kernel_size=(3, 3), strides=(2, 2), out_shape=[16, 16]),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", OPTIONS)
def test_both_flaxes_convolve_alike(name):
    x, options = drawn(), OPTIONS[name]
    layer = getattr(clouds.linen, name.split()[0])(4, **options)
    variables = layer.init(jax.random.key(0), x)
    other = getattr(clouds.nnx, name.split()[0])(3, 4, **options, rngs=nnx.Rngs(0))
    assert other.kernel.shape == variables["params"]["kernel"].shape
    other.kernel[...] = variables["params"]["kernel"]
    bias = variables["params"]["bias"] = jnp.arange(4.0)
    other.bias[...] = bias
    y, z = layer.apply(variables, x), nnx.jit(lambda layer, x: layer(x))(other, x)
    np.testing.assert_allclose(y.features, z.features, atol=1e-5)
    np.testing.assert_array_equal(y.coordinates, z.coordinates)
    half = getattr(clouds.linen, name.split()[0])(4, **options, dtype=jnp.bfloat16)
    assert half.apply(variables, x).features.dtype == jnp.bfloat16


@pytest.mark.slow
def test_a_map_given_must_be_the_layers_own():
    x = drawn()
    layer = clouds.nnx.SparseConv(3, 4, (3, 3), rngs=nnx.Rngs(0))
    maps = act.kernel_map(x, 3)
    np.testing.assert_array_equal(layer(x, maps).features, layer(x).features)
    with pytest.raises(ValueError, match=r"dilation=\(2, 2\).*this layer"):
        layer(x, act.kernel_map(x, 3, dilation=2))
    with pytest.raises(ValueError, match="coordinates differ"):
        layer(x, act.kernel_map(drawn(1), 3))


def train(model, x, loss, steps):
    optimizer = nnx.Optimizer(model, optax.adam(1e-2), wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer, x):
        value, slopes = nnx.value_and_grad(lambda model: loss(model(x, rngs=nnx.Rngs(0))))(model)
        optimizer.update(model, slopes)
        return value

    return [float(step(model, optimizer, x)) for _ in range(steps)]


@pytest.mark.slow
def test_a_unet_learns_and_reads_no_padding():
    x = drawn()
    model = MinkUNet(3, 2, widths=(8, 12), rank=2, rngs=nnx.Rngs(0))
    target = jnp.where(x.coordinates[:, 1:].sum(1) % 2, 1, 0)

    def loss(y):
        each = optax.softmax_cross_entropy_with_integer_labels(y.features, target)
        return jnp.sum(jnp.where(y.valid, each, 0)) / y.count

    losses = train(model, x, loss, 40)
    assert losses[-1] < 0.5 * losses[0]
    y = model(x)
    assert y.sites.coordinates is x.sites.coordinates
    dirty = x.with_features(jnp.where(x.valid[:, None], x.features, jnp.nan))
    count = int(x.count)
    np.testing.assert_allclose(model(dirty).features[:count], y.features[:count], atol=1e-5)


@pytest.mark.slow
def test_a_classifier_learns_and_says_what_was_lost():
    x = drawn()
    model = CloudClassifier(3, 2, widths=(8, 8), rank=2, rngs=nnx.Rngs(0))
    labels = jnp.array([0, 1])

    def loss(y):
        return optax.softmax_cross_entropy_with_integer_labels(y, labels).mean()

    losses = train(model, x, loss, 20)
    assert losses[-1] < 0.5 * losses[0]
    assert model(x).shape == (2, 2)
    model.downs[0].capacity = 3
    graph, state = nnx.split(model)
    run = act.checked(lambda state, x: nnx.merge(graph, state)(x))
    with pytest.raises(ValueError, match="do not fit a capacity of 3"):
        run(state, x)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16, bool])
def test_sums_of_small_integers_do_not_wrap(dtype):
    bounds = act.Bounds(batch=1, lower=(-8,), upper=(8,))
    features = np.full((300, 1), 100).astype(dtype)
    found = act.voxelize(np.zeros((300, 1)), features, 1.0, bounds, reduce="sum", capacity=1)
    np.testing.assert_array_equal(found.tensor.features, features.sum(0, keepdims=True))
    rows = np.zeros((300, 2), np.int32)
    found = act.coalesce(rows, features, bounds, reduce="sum", capacity=1)
    np.testing.assert_array_equal(found.tensor.features, features.sum(0, keepdims=True))
