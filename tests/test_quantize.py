"""A dtype holds the values of a packed weight, or is refused."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import jaxsparse as js

WEIGHT = np.random.default_rng(0).standard_normal((64, 48)).astype(np.float32)
PATTERNS = [js.Block(4, 16), js.Unstructured()]


def spoiled(value):
    weight = WEIGHT.copy()
    weight[3, 5] = value
    return weight


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
@pytest.mark.parametrize("dtype", ["uint8", "int4", "uint4", "int16", "int32", "bool"])
def test_integers_other_than_int8_are_refused(pattern, dtype):
    with pytest.raises(ValueError, match=f"dtype={dtype} cannot hold .* float32 .*int8, with"):
        js.pack(WEIGHT, pattern, dtype=dtype)


@pytest.mark.parametrize("dtype", ["uint8", "int8", "int4", "bool"])
def test_a_weight_of_the_dtype_already_is_kept_as_it_is(dtype):
    weight = (WEIGHT * 3).astype(jnp.dtype(dtype))
    packed = js.pack(weight, js.Unstructured(), dtype=dtype)
    assert packed.scales is None and packed.dtype == weight.dtype
    np.testing.assert_array_equal(js.unpack(packed), weight)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float8_e4m3fn", "float8_e5m2"])
def test_floats_are_cast(dtype):
    packed = js.pack(WEIGHT, js.Block(4, 16), dtype=dtype)
    expected = WEIGHT.astype(getattr(ml_dtypes, dtype, None) or dtype)
    np.testing.assert_array_equal(js.unpack(packed), expected, strict=False)
    assert packed.dtype == expected.dtype


def test_int8_is_off_by_half_a_step_at_most():
    packed = js.pack(WEIGHT, js.Block(4, 16), dtype=jnp.int8)
    step = np.abs(WEIGHT).max(axis=0) / 127
    assert (np.abs(js.unpack(packed) - WEIGHT) <= step * 0.5001).all()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_int8_has_no_nan_and_no_infinity(value):
    rules = [js.Rule("up/kernel", js.Block(4, 16), 0.5)]
    where = rf"{value} at input 3 of output column 5 cannot be quantized"
    with pytest.raises(ValueError, match=rf"'up/kernel' of shape \(64, 48\): {where}"):
        js.pack_params({"up": {"kernel": spoiled(value)}}, {}, rules, dtype=jnp.int8)
    stack = np.stack([WEIGHT, spoiled(value)])
    with pytest.raises(ValueError, match="output column 5 of kernel 1"):
        js.pack(stack, js.Block(4, 16), batch_axis=0, dtype="int8")
    # Masked, it is zero.
    packed = js.pack(spoiled(value), js.Block(4, 16), np.isfinite(spoiled(value)), dtype="int8")
    assert np.abs(js.unpack(packed) - spoiled(0)).max() < 0.02


def test_a_traced_nan_spoils_its_column_only_and_for_all_to_see():
    @jax.jit
    def round_trip(weight):
        kept = np.ones(weight.shape, bool)
        return js.unpack(js.pack(weight, js.Block(4, 16), kept, dtype=jnp.int8))

    found = np.asarray(round_trip(spoiled(np.nan)))
    assert np.isnan(found[:, 5]).all() and np.isnan(found).sum() == 64
    others = np.arange(48) != 5
    assert np.abs(found - WEIGHT)[:, others].max() < 0.02


@pytest.mark.parametrize("dtype", ["float16", "float8_e4m3fn"])
def test_a_number_too_large_for_the_dtype_is_refused(dtype):
    with pytest.raises(ValueError, match=f"1000000.0 at input 3 .* does not fit into {dtype}"):
        js.pack(spoiled(1e6), js.Unstructured(), dtype=dtype)
    assert js.unpack(js.pack(spoiled(np.inf), js.Unstructured(), dtype="float16"))[3, 5] == np.inf


def test_complex_keeps_its_imaginary_part_or_is_refused():
    weight = WEIGHT + 1j * WEIGHT[::-1]
    np.testing.assert_array_equal(js.unpack(js.pack(weight, js.Block(4, 16))), weight)
    for dtype in ("float32", "int8"):
        with pytest.raises(ValueError, match=r"complex64 values stored in .* imaginary"):
            js.pack(weight, js.Block(4, 16), dtype=dtype)


def test_64_bits_are_narrowed_where_nothing_is_lost():
    wide = WEIGHT.astype(np.float64)
    packed = js.pack(wide, js.Block(4, 16))
    assert packed.dtype == jnp.float32
    np.testing.assert_array_equal(js.unpack(packed), WEIGHT)
    wide[3, 5] = 1e300
    with pytest.raises(
        ValueError, match=r"1e\+300 at input 3 .* does not fit into float32.*jax_enable_x64"
    ):
        js.pack(wide, js.Block(4, 16))
    whole = np.arange(64 * 48).reshape(64, 48)
    np.testing.assert_array_equal(js.unpack(js.pack(whole, js.Block(4, 16))), whole)
    whole[1, 2] = 2**40
    with pytest.raises(ValueError, match="1099511627776 at input 1 of output column 2 does not"):
        js.pack(whole, js.Block(4, 16))


@pytest.mark.parametrize(
    "weight", [3.0, [[1.0]], None, jax.random.split(jax.random.key(0), 8), np.array([["a"]])]
)
def test_what_is_no_array_of_numbers_is_refused(weight):
    with pytest.raises(
        TypeError, match=r"a (float|list|NoneType|PRNGKeyArray|ndarray).* cannot be"
    ):
        js.pack(weight, js.Block(4, 4))
