"""Codes of 8 bits against NumPy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxsparse.quantized import Affine


@settings(max_examples=20, deadline=None)
@given(
    scale=st.floats(2**-10, 10.0, width=32),
    dtype=st.sampled_from(["uint8", "int8"]),
    share=st.floats(0, 1),
    seed=st.integers(0, 2**32 - 1),
)
def test_the_nearest_code(scale, dtype, share, seed):
    low, high = Affine(1.0, 0, dtype).limits
    zero = low + round(share * (high - low))
    codes = Affine(scale, zero, dtype)
    x = np.random.default_rng(seed).normal(0, 200 * scale, 300).astype(np.float32)
    steps = x.astype(np.float64) / np.float32(scale)
    expected = np.clip(np.round(steps) + zero, low, high)
    found = np.asarray(codes.quantize(jnp.asarray(x)))
    ties = np.abs(steps - np.floor(steps) - 0.5) < 1e-4
    assert found.dtype == dtype
    np.testing.assert_array_equal(found[~ties], expected[~ties])
    assert np.abs(found.astype(float) - expected).max() <= 1
    back = codes.dequantize(jnp.asarray(found))
    np.testing.assert_allclose(back, (found.astype(np.float64) - zero) * scale, rtol=1e-6)


def test_ties_and_what_lies_beyond():
    x = jnp.array([-0.5, 0.5, 1.5, 2.5, np.inf, -np.inf, np.nan, 1e30])
    found = Affine(1.0, 10).quantize(x)
    np.testing.assert_array_equal(found, [10, 10, 12, 12, 255, 0, 0, 255])
    found = Affine(1.0, -128, "int8").quantize(x)
    np.testing.assert_array_equal(found, [-128, -128, -126, -126, 127, -128, -128, 127])


def test_a_pytree_that_jit_takes():
    codes = Affine(jnp.float32(0.25), jnp.int32(-3), jnp.int8)
    run = jax.jit(lambda codes, x: (codes, codes.quantize(x)))
    returned, found = run(codes, jnp.arange(4.0))
    assert returned.dtype == "int8" and returned.scale == 0.25
    np.testing.assert_array_equal(found, [-3, 1, 5, 9])
    assert jax.tree.structure(codes) == jax.tree.structure(Affine(1.0, 0, "int8"))


def test_what_rounds_to_a_code_does_not_saturate():
    x = jnp.array([-10.6, -10.4, 0.0, 245.4, 245.6, np.inf, np.nan])
    expected = [False, True, True, True, False, False, False]
    np.testing.assert_array_equal(Affine(1.0, 10).covers(x), expected)
    np.testing.assert_array_equal(Affine(0.5, -118, "int8").covers(x / 2), expected)


@pytest.mark.parametrize(
    ("fields", "error", "words"),
    [
        ({"scale": np.nan}, ValueError, "scale=nan"),
        ({"scale": 0.0}, ValueError, "scale=0"),
        ({"scale": -1.0}, ValueError, "scale=-1"),
        ({"scale": np.inf}, ValueError, "scale=inf"),
        ({"scale": 1e-39}, ValueError, "is not from"),
        ({"scale": jnp.float32(np.nan)}, ValueError, "scale=nan"),
        ({"scale": np.ones(2, np.float32)}, TypeError, "shape"),
        ({"scale": 1.0, "zero_point": 256}, ValueError, "zero_point=256 .* uint8"),
        ({"scale": 1.0, "zero_point": -1}, ValueError, "zero_point=-1"),
        ({"scale": 1.0, "zero_point": 128, "dtype": "int8"}, ValueError, "zero_point=128 .* int8"),
        ({"scale": 1.0, "zero_point": 1.5}, TypeError, "zero_point"),
        ({"scale": 1.0, "dtype": "int16"}, TypeError, "int16"),
        ({"scale": 1 + 0j}, TypeError, "complex128 is no scalar real number"),
    ],
)
def test_what_is_no_description_of_codes(fields, error, words):
    with pytest.raises(error, match=words):
        Affine(**fields)


def test_only_floats_have_codes_and_only_codes_stand_for_them():
    with pytest.raises(TypeError, match="int32"):
        Affine(1.0).quantize(jnp.arange(3))
    with pytest.raises(TypeError, match="int8"):
        Affine(1.0).dequantize(jnp.arange(3, dtype=jnp.int8))
