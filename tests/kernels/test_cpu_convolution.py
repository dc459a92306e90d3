"""Native convolutions of any window over any image, in every storage: what is stored, no more."""

import dataclasses

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from cpu_cases import TOLERANCE, bitmap_case, block_case, csc_case, nm_case
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

from jaxsparse.kernels import cpu
from jaxsparse.kernels.windows import Window

pytestmark = pytest.mark.skipif(cpu.missing() is not None, reason=str(cpu.missing()))

CASES = {
    "4x16": lambda rng, shape, dtype: block_case(rng, shape, (4, 16), 0.4, dtype),
    "32x32": lambda rng, shape, dtype: block_case(rng, shape, (32, 32), 0.6, dtype),
    "csc": lambda rng, shape, dtype: csc_case(rng, shape, 0.2, dtype),
    "bitmap": lambda rng, shape, dtype: bitmap_case(rng, shape, 0.5, dtype),
    "2:4": lambda rng, shape, dtype: nm_case(rng, shape, 2, 4, dtype),
    "3:16": lambda rng, shape, dtype: nm_case(rng, shape, 3, 16, dtype),
}


def convolve(case, x, window):
    values, scales = case.values, case.scales
    y = cpu.convolution(
        x, values, *case.index, layout=case.layout, window=window, out_dtype=jnp.float32
    )
    return y if scales is None else y * scales


def expected(case, x, window):
    """By the dense weight, in float64, where `lax.conv_general_dilated` would add in float32."""
    edges = [(0, 0), *window.padding, (0, 0)]
    x = np.pad(np.asarray(x, np.float64), edges)
    none = ((0, 0),) * len(window.size)
    places = dataclasses.replace(window, padding=none).places(x.shape[1:-1])
    taps = []
    for tap in np.ndindex(*window.size):
        cut = [
            slice(d * t, d * t + (n - 1) * s + 1, s) if n else slice(0)
            for d, t, n, s in zip(window.dilation, tap, places, window.strides, strict=True)
        ]
        taps.append(x[:, *cut])
    patches = np.stack(taps, axis=-2).reshape(len(x), *places, -1)
    return patches @ case.dense


axes = st.tuples(st.integers(1, 2), st.integers(1, 3), st.tuples(*[st.integers(0, 3)] * 2))


@st.composite
def geometries(draw):
    """An image and a window of at least one place."""
    count = draw(st.integers(1, 2))
    size = tuple(draw(st.sampled_from([1, 2, 3, 5, 7])) for _ in range(count))
    chosen = [draw(axes) for _ in range(count)]
    dilation, strides, padding = (tuple(part) for part in zip(*chosen, strict=True))
    window = Window(size, strides, dilation, padding)
    sizes = []
    for seen, (low, high) in zip(window.reach([1] * count), padding, strict=True):
        sizes.append(draw(st.integers(max(1, seen - low - high), seen + 9)))
    return (draw(st.integers(1, 3)), *sizes, draw(st.integers(1, 21))), window


@settings(deadline=None, max_examples=60)
@given(
    geometry=geometries(),
    name=st.sampled_from([*CASES]),
    dtype=st.sampled_from(["f32", "bf16", "int8"]),
    half=st.booleans(),
    columns=st.sampled_from([1, 16, 37, 96]),
)
def test_any_window(geometry, name, dtype, half, columns):
    shape, window = geometry
    rng = np.random.default_rng(0)
    case = CASES[name](rng, (np.prod(window.size) * shape[-1], columns), dtype)
    x = rng.standard_normal(shape).astype(ml_dtypes.bfloat16 if half else np.float32)
    wanted = expected(case, x, window)
    actual = convolve(case, x, window)
    assert actual.shape == wanted.shape
    tolerance = TOLERANCE[dtype] * max(1.0, np.abs(wanted).max())
    np.testing.assert_allclose(actual, wanted, rtol=TOLERANCE[dtype], atol=10 * tolerance)


@pytest.mark.parametrize("name", CASES)
def test_many_places(name):
    """Rows of places are shared by threads, and panels cross images."""
    rng = np.random.default_rng(1)
    window = Window((3, 3), (1, 1), (1, 1), ((1, 1), (1, 1)))
    case = CASES[name](rng, (9 * 20, 80), "f32")
    for shape in ((40, 7, 7, 20), (2, 60, 37, 20)):
        x = rng.standard_normal(shape, np.float32)
        wanted = expected(case, x, window)
        np.testing.assert_allclose(convolve(case, x, window), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", CASES)
def test_nothing_stored_meets_no_infinity(name):
    rng = np.random.default_rng(2)
    window = Window((3, 3), (1, 1), (1, 1), ((1, 1), (1, 1)))
    case = CASES[name](rng, (9 * 16, 48), "f32")
    x = rng.standard_normal((1, 6, 6, 16)).astype(np.float32)
    x[0, 2, 3, 5] = np.inf
    x[0, 4, 1, 7] = np.nan
    y = np.asarray(convolve(case, x, window))
    # Stored, in blocks zeros too, or only in what a group or a window holds.
    stored = case.pick(np.ones((9 * 16, 48)))
    reached = case.layout.todense(jnp.asarray(stored, jnp.float32), *case.index) != 0
    bad = ~np.isfinite(x)
    met = expected(_dense(case, np.asarray(reached, np.float64)), bad.astype(np.float64), window)
    assert (met > 0).any() and (met == 0).any()
    np.testing.assert_array_equal(np.isfinite(y), met == 0)


def _dense(case, dense):
    return case.replace(dense=dense)


def test_empty_images_and_windows_larger_than_them():
    rng = np.random.default_rng(3)
    case = csc_case(rng, (9 * 4, 5), 0.3)
    window = Window((3, 3), (1, 1), (1, 1), ((0, 0), (0, 0)))
    for shape in ((0, 5, 5, 4), (2, 2, 5, 4)):
        y = convolve(case, np.ones(shape, np.float32), window)
        assert y.shape == (shape[0], *window.places(shape[1:3]), 5) and y.size == 0
    padded = Window((3, 3), (1, 1), (1, 1), ((2, 1), (1, 2)))
    zeros = convolve(case, np.ones((2, 0, 5, 4), np.float32), padded)
    assert zeros.shape == (2, 1, 6, 5) and not zeros.any()


def test_rows_out_of_order_are_refused():
    case = csc_case(np.random.default_rng(4), (9 * 4, 5), 0.5)
    indptr, rows = case.index
    window = Window((3, 3), (1, 1), (1, 1), ((1, 1), (1, 1)))
    x = np.ones((1, 5, 5, 4), np.float32)
    for bad in (rows[::-1].copy(), np.where(rows == rows[0], 36, rows).astype(rows.dtype)):
        broken = case.replace(index=(indptr, bad))
        with pytest.raises(jax.errors.JaxRuntimeError, match="row index is outside"):
            jax.block_until_ready(convolve(broken, x, window))


def test_more_axes_are_refused_by_name():
    case = csc_case(np.random.default_rng(5), (8 * 4, 5), 0.5)
    struct = jax.ShapeDtypeStruct((1, 3, 3, 3, 4), jnp.float32)
    dtype = jnp.dtype(jnp.float32)
    reason = cpu.unsupported("convolution", case.layout, struct, case.values, dtype)
    assert reason is not None and "one or two spatial axes, not 3" in reason


def test_a_dense_convolution_agrees():
    rng = np.random.default_rng(6)
    case = nm_case(rng, (3 * 2 * 8, 16), 2, 4)
    window = Window((3, 2), (2, 1), (1, 2), ((1, 0), (0, 2)))
    x = rng.standard_normal((2, 9, 8, 8)).astype(np.float32)
    wanted = lax.conv_general_dilated(
        x,
        case.dense.reshape(3, 2, 8, 16).astype(np.float32),
        window.strides,
        window.padding,
        rhs_dilation=window.dilation,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    np.testing.assert_allclose(convolve(case, x, window), wanted, rtol=1e-4, atol=1e-4)
