"""`linear` forwards against integers, backwards against the same layer without rounding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsparse as js
from jaxsparse.quantized import Affine, dynamic, linear, of_range


def numbers(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def packed_of(k=10, n=7, seed=1):
    weight = numbers(k, n, seed=seed)
    weight[:4, 4:] = 0
    return js.pack(weight, js.Block(2, 4), dtype=jnp.int8)


CODES = of_range(-2.0, 1.0)
X, BIAS = numbers(3, 10), numbers(7, seed=2)


def by_hand(codes, packed, affine, bias=0.0, relu=False):
    whole = np.asarray(packed.replace(scales=None).todense(), np.int64)
    sums = (np.asarray(codes, np.int64) - int(affine.zero_point)) @ whole
    scales = np.float32(affine.scale) * np.asarray(packed.scales)
    y = sums.astype(np.float32) * scales + np.float32(bias)
    return np.maximum(y, 0) if relu else y


def test_floats_and_their_codes_give_the_same():
    packed, codes = packed_of(), CODES.quantize(jnp.asarray(X))
    expected = by_hand(codes, packed, CODES, BIAS, relu=True)
    for x in (jnp.asarray(X), codes):
        y = linear(x, packed, CODES, bias=BIAS, activation="relu")
        assert y.dtype == jnp.float32
        np.testing.assert_allclose(y, expected, rtol=1e-6, atol=1e-6)


def test_layers_hand_each_other_codes():
    one, two = packed_of(10, 8), packed_of(8, 5, seed=3)
    between = of_range(0.0, 3.0)
    codes = linear(jnp.asarray(X), one, CODES, activation="relu", out=between)
    assert codes.dtype == jnp.uint8
    hidden = linear(jnp.asarray(X), one, CODES, activation="relu")
    np.testing.assert_array_equal(codes, between.quantize(hidden))
    np.testing.assert_array_equal(linear(codes, two, between), linear(hidden, two, between))


def test_without_codes_the_range_is_that_of_x():
    packed, x = packed_of(), jnp.asarray(X)
    expected = linear(x, packed, dynamic(x))
    np.testing.assert_allclose(jax.jit(lambda x: linear(x, packed))(x), expected, rtol=1e-5)
    half = linear(x.astype(jnp.bfloat16), packed)
    assert half.dtype == jnp.bfloat16
    np.testing.assert_allclose(half.astype(jnp.float32), expected, atol=0.1)


@pytest.mark.parametrize("activation", [None, "relu"])
def test_gradients_are_those_without_rounding(activation):
    packed, x, bias = packed_of(), jnp.asarray(X), jnp.asarray(BIAS)
    low, high = (float(CODES.dequantize(jnp.asarray(c, jnp.uint8))) for c in (0, 255))
    assert np.any(low > X) and np.any(high < X)

    def rounded(x, scales, bias):
        weight = packed.replace(scales=scales)
        y = linear(x, weight, CODES, bias=bias, activation=activation)
        return jnp.sum(y * jnp.cos(jnp.arange(7.0)))

    def smooth(x, scales, bias):
        # What is cut has no gradient; what is rounded, that of the number that it stands for.
        cut = jnp.clip(x, low, high)
        codes = CODES.dequantize(CODES.quantize(x))
        weight = packed.replace(scales=None).todense().astype(jnp.float32) * scales
        y = (cut + jax.lax.stop_gradient(codes - cut)) @ weight + bias
        y = jax.nn.relu(y) if activation else y
        return jnp.sum(y * jnp.cos(jnp.arange(7.0)))

    for at in (0, 1, 2):
        found, expected = (
            jax.jit(jax.grad(f, at))(x, packed.scales, bias) for f in (rounded, smooth)
        )
        np.testing.assert_allclose(found, expected, rtol=2e-5, atol=1e-5)


def test_the_ends_of_a_range_have_gradients():
    packed = packed_of(10, 8)
    for seed in range(8):  # zero points are rounded up and down
        x = jnp.asarray(numbers(3, 10, seed=seed))
        slopes = jax.grad(lambda x: linear(x, packed).sum())(x)
        expected = jnp.broadcast_to(js.unpack(packed).sum(1), x.shape)
        np.testing.assert_allclose(slopes, expected, rtol=1e-5, atol=1e-5)


def test_a_layer_under_vmap():
    packed, x = packed_of(), jnp.asarray(numbers(2, 3, 10))
    found = jax.vmap(lambda x: linear(x, packed, CODES))(x)
    np.testing.assert_array_equal(found, linear(x, packed, CODES))


@pytest.mark.parametrize(
    ("x", "inputs", "words"),
    [
        (jnp.ones((2, 10), jnp.uint8), None, "x of uint8 is neither"),
        (jnp.ones((2, 10), jnp.int8), CODES, "the Affine that uint8 codes"),
        (jnp.ones((2, 10), jnp.int32), CODES, "x of int32"),
    ],
)
def test_codes_of_another_kind_are_refused(x, inputs, words):
    with pytest.raises(TypeError, match=words):
        linear(x, packed_of(), inputs)


def test_codes_that_are_no_affine_are_refused():
    with pytest.raises(TypeError, match="linear: inputs= is of type dict, no Affine"):
        linear(jnp.asarray(X), packed_of(), {"up": CODES})
    with pytest.raises(TypeError, match="linear: out= is of type str, no Affine"):
        linear(jnp.asarray(X), packed_of(), CODES, out="uint8")


def test_what_is_no_int8_weight_is_refused():
    with pytest.raises(TypeError, match=r"dtype=jnp\.int8"):
        linear(jnp.asarray(X), js.pack(numbers(10, 7), js.Block(2, 4)), CODES)
    with pytest.raises(ValueError, match="zero_point=256 is no code of uint8"):
        Affine(1.0, 256)
    with pytest.raises(ValueError, match="scale=nan"):
        Affine(float("nan"))
