"""The native CPU kernels against numpy in float64."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cpu_cases import (
    TOLERANCE,
    bitmap_case,
    block_case,
    check_all,
    csc_case,
    csr_case,
    nm_case,
    relative_error,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxsparse.kernels import cpu
from jaxsparse.kernels.layouts import BitmapLayout, BlockLayout, CSCLayout, CSRLayout, NMLayout

pytestmark = pytest.mark.skipif(cpu.missing() is not None, reason=str(cpu.missing()))

SIZES = st.integers(1, 300)
# Either side of every change of kernel: rows in registers, narrow and wide panels.
BATCHES = st.sampled_from([0, 1, 2, 3, 5, 8, 9, 14, 15, 16, 17, 33, 48, 65, 130])
DENSITIES = st.sampled_from([0.0, 0.02, 0.1, 0.5, 1.0])
DTYPES = st.sampled_from(["f32", "bf16", "int8"])
SEEDS = st.integers(0, 2**32 - 1)
BLOCKS = [(1, 16), (4, 16), (16, 16), (32, 32), (64, 64), (128, 128), (3, 48), (5, 80)]
GROUPS = [(2, 4), (1, 4), (3, 4), (4, 8), (1, 2), (2, 16), (7, 16), (2, 2)]


@pytest.mark.parametrize("block", BLOCKS)
@settings(max_examples=6, deadline=None)
@given(k=SIZES, n=SIZES, batch=BATCHES, density=DENSITIES, dtype=DTYPES, seed=SEEDS)
def test_block(block, k, n, batch, density, dtype, seed):
    rng = np.random.default_rng(seed)
    case = block_case(rng, (k, n), block, density, dtype, spare=seed % 3)
    check_all(case, rng, batch, TOLERANCE[dtype])


@pytest.mark.parametrize("index_dtype", [np.uint16, np.int32])
@settings(max_examples=15, deadline=None)
@given(k=SIZES, n=SIZES, batch=BATCHES, density=DENSITIES, dtype=DTYPES, seed=SEEDS)
def test_csc(index_dtype, k, n, batch, density, dtype, seed):
    rng = np.random.default_rng(seed)
    case = csc_case(rng, (k, n), density, dtype, index_dtype, spare=seed % 3)
    check_all(case, rng, batch, TOLERANCE[dtype])


@pytest.mark.parametrize("index_dtype", [np.uint16, np.int32])
@settings(max_examples=15, deadline=None)
@given(k=SIZES, n=SIZES, batch=BATCHES, density=DENSITIES, dtype=DTYPES, seed=SEEDS)
def test_csr(index_dtype, k, n, batch, density, dtype, seed):
    rng = np.random.default_rng(seed)
    case = csr_case(rng, (k, n), density, dtype, index_dtype, spare=seed % 3)
    check_all(case, rng, batch, TOLERANCE[dtype])


@settings(max_examples=30, deadline=None)
@given(k=SIZES, n=SIZES, batch=BATCHES, density=DENSITIES, dtype=DTYPES, seed=SEEDS)
def test_bitmap(k, n, batch, density, dtype, seed):
    rng = np.random.default_rng(seed)
    case = bitmap_case(rng, (k, n), density, dtype, spare=seed % 3)
    check_all(case, rng, batch, TOLERANCE[dtype])


@pytest.mark.parametrize(("n", "m"), GROUPS)
@settings(max_examples=6, deadline=None)
@given(k=SIZES, columns=SIZES, batch=BATCHES, dtype=DTYPES, seed=SEEDS)
def test_nm(n, m, k, columns, batch, dtype, seed):
    rng = np.random.default_rng(seed)
    check_all(nm_case(rng, (k, columns), n, m, dtype), rng, batch, TOLERANCE[dtype])


def test_empty_rows_and_columns():
    rng = np.random.default_rng(0)
    for case in (block_case(rng, (96, 96), (32, 32), 1.0), csc_case(rng, (96, 96), 0.3)):
        indptr, rows = case.index
        # The middle block column, or the middle columns, lose all they have.
        low, high = indptr[len(indptr) // 3], indptr[2 * len(indptr) // 3]
        values, rows = np.delete(case.values, np.s_[low:high], 0), np.delete(rows, np.s_[low:high])
        pointers = np.minimum(indptr, low) + np.maximum(indptr - high, 0)
        x = rng.standard_normal((40, 96)).astype(np.float32)
        index = pointers.astype(np.int32), rows
        y = np.asarray(case.replace(values=values, index=index).dot(x))
        full = x.astype(np.float64) @ case.dense
        empty = np.repeat(np.diff(pointers) == 0, 96 // (len(pointers) - 1))
        assert (y[:, empty] == 0).all() and empty.any()
        assert relative_error(y[:, ~empty], full[:, ~empty]) < 1e-5


@pytest.mark.slow
def test_large_shapes():
    rng = np.random.default_rng(1)
    for batch in (1, 8, 64, 300):
        check_all(block_case(rng, (1024, 768), (32, 32), 0.2), rng, batch, 1e-5)
        check_all(block_case(rng, (1024, 768), (4, 16), 0.2), rng, batch, 1e-5)
        check_all(csc_case(rng, (1024, 768), 0.1), rng, batch, 1e-5)
        check_all(csc_case(rng, (1024, 768), 0.02), rng, batch, 1e-5)
        check_all(csr_case(rng, (1024, 768), 0.1), rng, batch, 1e-5)
        check_all(bitmap_case(rng, (1024, 768), 0.2), rng, batch, 1e-5)
        check_all(bitmap_case(rng, (1000, 701), 0.5), rng, batch, 1e-5)
        check_all(nm_case(rng, (1024, 768), 2, 4), rng, batch, 1e-5)


def test_bfloat16_activations():
    rng = np.random.default_rng(2)
    case = block_case(rng, (64, 64), (32, 32), 0.5, "bf16")
    x = jnp.asarray(rng.standard_normal((20, 64)), jnp.bfloat16)
    y = case.dot(x)
    assert y.dtype == jnp.float32
    assert relative_error(y, np.asarray(x, np.float64) @ case.dense) < 1e-2


@pytest.mark.parametrize("batch", [1, 8, 64, 130])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_not_finite_kept_entries_propagate(batch, bad):
    rng = np.random.default_rng(3)
    x = rng.standard_normal((batch, 64)).astype(np.float32)
    for case in (
        block_case(rng, (64, 64), (4, 16), 1.0),
        csc_case(rng, (64, 64), 1.0),
        csr_case(rng, (64, 64), 1.0),
        bitmap_case(rng, (64, 64), 1.0),
        nm_case(rng, (64, 64), 2, 4),
    ):
        case.values[case.values.shape[0] // 2] = bad
        clean = case.dense
        packed = np.isfinite(np.asarray(case.dot(x)))
        assert not packed.all()
        # What the bad entries do not reach is as it was.
        columns = packed.all(0)
        expected = (x.astype(np.float64) @ clean)[:, columns]
        assert relative_error(np.asarray(case.dot(x))[:, columns], expected) < 1e-5


@pytest.mark.parametrize("batch", [1, 2, 8, 20, 64])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("dtype", ["f32", "bf16", "int8"])
def test_what_a_bitmap_leaves_out_is_not_multiplied(batch, bad, dtype):
    rng = np.random.default_rng(5)
    case = bitmap_case(rng, (300, 71), 0.5, dtype)
    x = rng.standard_normal((batch, 300)).astype(np.float32)
    spoilt = np.arange(batch) >= batch // 2  # one row of one is
    x[spoilt, 17] = bad
    reached = spoilt[:, None] & (case.dense[17] != 0)
    y = np.asarray(case.dot(x))
    assert reached.any() and not np.isfinite(y[reached]).any()
    x[spoilt, 17] = 0
    expected = x.astype(np.float64) @ case.dense
    assert relative_error(y[~reached], expected[~reached]) < TOLERANCE[dtype]


def test_a_new_index_recompiles_nothing():
    rng = np.random.default_rng(4)
    traces = []

    @jax.jit
    def product(x, values, indptr, rows):
        traces.append(None)
        layout = BlockLayout((128, 64), (32, 32), 4)
        options = {"layout": layout, "transpose": False, "out_dtype": jnp.float32}
        return cpu.product(x, values, indptr, rows, **options)

    x = rng.standard_normal((8, 128)).astype(np.float32)
    values = rng.standard_normal((4, 32, 32)).astype(np.float32)
    for rows in ([0, 1, 2, 3], [0, 3, 1, 2]):
        dense = np.zeros((128, 64))
        for e, i in enumerate(rows):
            dense[32 * i : 32 * i + 32, 32 * (e // 2) : 32 * (e // 2) + 32] = values[e]
        indptr = np.array([0, 2, 4], np.int32)
        y = product(x, values, indptr, np.array(rows, np.int32))
        assert relative_error(y, x @ dense) < 1e-5
    assert len(traces) == 1


@pytest.mark.parametrize(
    ("layout", "x", "values", "reason"),
    [
        (BlockLayout((64, 64), (32, 32), 2), "float32", "float32", None),
        (CSCLayout((64, 64), 9), "bfloat16", "int8", None),
        (CSRLayout((64, 64), 9), "float32", "int8", None),
        (BitmapLayout((64, 64), 9), "float32", "bfloat16", None),
        (NMLayout((64, 64), 2, 4), "float32", "float32", None),
        (BlockLayout((64, 64), (8, 8), 2), "float32", "float32", "multiple of 16"),
        (BlockLayout((2**17, 64), (2**16, 16), 2), "float32", "float32", "65536"),
        (NMLayout((64, 64), 3, 5), "float32", "float32", "3:5"),
        (NMLayout((64, 64), 5, 4), "float32", "float32", "5:4"),
        (NMLayout((64, 64), 2, 4, 8), "float32", "float32", "shared by several columns"),
        (CSCLayout((64, 64), 9), "float64", "float32", "x must be .* not float64"),
        (CSCLayout((64, 64), 9), "float32", "float16", "weights must be .* not float16"),
    ],
)
def test_unsupported_says_why_not(layout, x, values, reason):
    x, values = (jax.ShapeDtypeStruct((1, 1), jnp.dtype(dtype)) for dtype in (x, values))
    found = cpu.unsupported("product", layout, x, values, np.dtype(np.float32))
    assert found is None if reason is None else re.search(reason, found)
    assert cpu.unsupported("product", layout, x, values, np.dtype(np.float64)) is not None


def test_what_is_sampled_may_be_of_any_float():
    x, g = (jax.ShapeDtypeStruct((1, 64), jnp.dtype(dtype)) for dtype in ("float32", "float16"))
    assert cpu.unsupported("sampled", CSCLayout((64, 64), 9), x, g, np.dtype("float32")) is None
