"""Products of a few rows that read only the weights of inputs that are not zero."""

import jax
import numpy as np
import pytest
from cpu_cases import TOLERANCE, csc_case, csr_case, relative_error

from jaxsparse.kernels import cpu

pytestmark = pytest.mark.skipif(cpu.missing() is not None, reason=str(cpu.missing()))


@pytest.mark.parametrize("active", [0.0, 0.02, 0.35, 1.0])
@pytest.mark.parametrize("rows", [1, 2, 8, 9])
@pytest.mark.parametrize("dtype", ["f32", "bf16", "int8"])
@pytest.mark.parametrize("index_dtype", [np.uint16, np.int32])
def test_any_share_of_active_inputs(rows, active, dtype, index_dtype):
    rng = np.random.default_rng(rows)
    case = csr_case(rng, (67, 301), 0.3, dtype, index_dtype, spare=2)
    x = np.where(rng.random((rows, 67)) < active, rng.standard_normal((rows, 67)), 0)
    x = x.astype(np.float32)
    y = case.dot(x)
    assert relative_error(y, x.astype(np.float64) @ case.dense) < TOLERANCE[dtype]
    if active == 0:
        np.testing.assert_array_equal(y, np.zeros((rows, 301)))


def test_lists_of_every_length():
    rng = np.random.default_rng(0)
    dense = np.zeros((90, 100))
    for i in range(90):  # input i reaches i outputs: eight and a vector are crossed
        dense[i, rng.permutation(100)[:i]] = rng.standard_normal(i)
    for index_dtype in (np.uint16, np.int32):
        case = csr_case(rng, (90, 100), 0.1, index_dtype=index_dtype)
        rows, columns = np.nonzero(dense)
        indptr = np.searchsorted(rows, np.arange(91)).astype(np.int32)
        layout = type(case.layout)((90, 100), len(rows))
        values = dense[rows, columns].astype(np.float32)
        case = case.replace(layout=layout, values=values)
        case = case.replace(index=(indptr, columns.astype(index_dtype)))
        for i in range(90):
            x = np.zeros((1, 90), np.float32)
            x[0, i] = 2
            np.testing.assert_array_equal(case.dot(x)[0], 2 * dense[i].astype(np.float32))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_not_finite_inputs_reach_what_they_are_connected_with(bad):
    rng = np.random.default_rng(1)
    case = csr_case(rng, (50, 90), 0.2)
    x = np.where(rng.random((3, 50)) < 0.3, 1, 0).astype(np.float32)
    x[1, 7] = bad
    reached = np.zeros((3, 90), bool)
    reached[1] = case.dense[7] != 0
    y = np.asarray(case.dot(x))
    assert reached.any() and (np.isfinite(y) == ~reached).all()


def test_a_zero_skips_infinite_weights_up_to_eight_rows():
    case = csr_case(np.random.default_rng(2), (40, 30), 0.5)
    indptr, columns = case.index
    case.values[indptr[3] : indptr[4]] = np.inf
    for rows, skipped in ((1, True), (8, True), (9, False)):
        x = np.ones((rows, 40), np.float32)
        x[:, 3] = -0.0
        y = np.asarray(case.dot(x))
        assert np.isfinite(y).all() == skipped
        spoilt = np.zeros(30, bool)
        spoilt[columns[indptr[3] : indptr[4]]] = True
        assert np.isfinite(y[:, ~spoilt]).all()


def test_an_index_is_checked_where_it_is_read():
    case = csr_case(np.random.default_rng(3), (40, 30), 0.5)
    indptr, columns = case.index
    x = np.ones((1, 40), np.float32)
    good = np.asarray(case.dot(x * (np.arange(40) != 5)))
    for place, wrong in ((indptr[6] - 1, 30), (indptr[5], 65535), (indptr[5] + 1, columns[0])):
        damaged = columns.copy()
        damaged[place] = wrong if wrong >= 30 else damaged[indptr[5]]  # the same one twice
        broken = case.replace(index=(indptr, damaged))
        with pytest.raises(Exception, match="outside the kernel, or rows do not ascend"):
            np.asarray(broken.dot(x))
        np.testing.assert_array_equal(broken.dot(x * (np.arange(40) != 5)), good)


def test_many_weights_are_summed_in_pieces():
    """More than twice 64 Ki weights."""
    rng = np.random.default_rng(4)
    case = csr_case(rng, (700, 333), 0.9)
    x = np.where(rng.random((2, 700)) < 0.95, rng.standard_normal((2, 700)), 0).astype(np.float32)
    y = case.dot(x)
    assert relative_error(y, x.astype(np.float64) @ case.dense) < 1e-5
    np.testing.assert_array_equal(case.dot(x[1:]), y[1:])
    columns = csc_case(rng, (333, 700), 0.9)
    dx = jax.jit(columns.dot_transposed)(x)
    assert relative_error(dx, x.astype(np.float64) @ columns.dense.T) < 1e-5
