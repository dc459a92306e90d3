"""Indices given by hand: an error which names the entry, and never a crash."""

import numpy as np
import pytest
from cpu_cases import CsrCase, bitmap_case, block_case, csc_case, nm_case

from jaxsparse.kernels import cpu
from jaxsparse.kernels.layouts import BitmapLayout, CSRLayout, NMLayout

needs_library = pytest.mark.skipif(cpu.missing() is not None, reason=str(cpu.missing()))


def refused(product, *arguments):
    with pytest.raises(Exception, match="jaxsparse cpu kernel"):
        np.asarray(product(*arguments))


def all_refused(case, x, dy):
    refused(case.dot, x)
    refused(case.dot_transposed, dy)
    refused(case.sampled, x, dy)


@needs_library
@pytest.mark.parametrize("batch", [1, 4, 8, 40, 200])
def test_the_library_refuses_what_it_cannot_read(batch):
    rng = np.random.default_rng(1)
    x, dy = (rng.standard_normal((batch, size)).astype(np.float32) for size in (64, 32))
    blocks = block_case(rng, (64, 32), (16, 16), 1.0)
    indptr, rows = blocks.index
    for wrong in (rows + 1, rows - 1, rows + 2**30):
        all_refused(blocks.replace(index=(indptr, wrong.astype(np.int32))), x, dy)
    for wrong in (indptr + 1, indptr[::-1], indptr[:-1]):
        refused(blocks.replace(index=(wrong, rows)).dot, x)
    refused(blocks.replace(values=blocks.values[:, :, :8]).dot, x)
    columns = csc_case(rng, (64, 32), 0.5)
    refused(columns.replace(index=(columns.index[0][:-1], columns.index[1])).dot, x)

    groups = nm_case(rng, (64, 32), 2, 4)
    refused(groups.replace(index=(groups.index[0][1:],)).dot, x)
    refused(groups.replace(layout=NMLayout((64, 32), 1, 4)).dot, x)

    for case in (blocks, columns, groups, bitmap_case(rng, (64, 32), 0.5)):
        for scales in (x[0, :31], x[:1, :32]):
            refused(case.replace(scales=scales).dot, x)


def _set(index, entry, value):
    wrong = index.copy()
    wrong[entry] = value
    return wrong


@needs_library
@pytest.mark.parametrize("index_dtype", [np.uint16, np.int32])
@pytest.mark.parametrize("k", [64, 600, 8205])
@pytest.mark.parametrize("batch", [1, 5, 40])
def test_every_product_refuses_the_same_columns(batch, k, index_dtype):
    rng = np.random.default_rng(batch + k)
    n = 70
    x, dy = (rng.standard_normal((batch, size)).astype(np.float32) for size in (k, n))
    case = csc_case(rng, (k, n), 0.3, spare=3, index_dtype=index_dtype)
    indptr, rows = case.index

    def all_refuse(*index):
        all_refused(case.replace(index=index), x, dy)

    begin, end = indptr[5:7]
    descending = rows.copy()
    descending[begin:end] = rows[begin:end][::-1]
    for wrong in (
        descending,
        _set(rows, end - 1, k),  # no row of k
        _set(rows, begin, np.iinfo(index_dtype).max),
        _set(rows, begin + 1, rows[begin]),  # twice
        _set(rows, begin + 1, 0),
        _set(rows, indptr[-1] - 1, 0),  # the very last
    ):
        all_refuse(indptr, wrong)
    if index_dtype == np.int32:
        all_refuse(indptr, _set(rows, begin, -1))
    for wrong in (
        indptr + 1,
        indptr[::-1].copy(),
        _set(indptr, 6, begin - 1),
        _set(indptr, -1, len(rows) + 1),
        _set(indptr, 0, -1),
    ):
        all_refuse(wrong, rows)
    turned = CsrCase(CSRLayout((n, k), len(rows)), case.dense.T, case.values, case.index, None)
    for wrong in (descending, _set(rows, end - 1, k), _set(rows, begin + 1, rows[begin])):
        all_refused(turned.replace(index=(indptr, wrong)), dy, x)
    # Room to spare is nobody's, whatever it says.
    spare = _set(rows, -1, np.iinfo(index_dtype).max)
    np.testing.assert_array_equal(case.replace(index=(indptr, spare)).dot(x), case.dot(x))


@needs_library
@pytest.mark.parametrize("batch", [1, 40])
def test_every_product_refuses_the_same_blocks(batch):
    rng = np.random.default_rng(batch)
    x, dy = (rng.standard_normal((batch, size)).astype(np.float32) for size in (66, 60))
    case = block_case(rng, (66, 60), (4, 16), 0.6, spare=2)
    indptr, rows = case.index
    begin = indptr[1]

    def all_refuse(*index):
        all_refused(case.replace(index=index), x, dy)

    for wrong in (
        _set(rows, indptr[2] - 1, 17),  # no row of 17
        _set(rows, begin, -1),
        _set(rows, begin, 2**30),
        _set(rows, begin + 1, rows[begin]),
        _set(rows, begin + 1, 0),
    ):
        all_refuse(indptr, wrong)
    for wrong in (indptr + 1, _set(indptr, 1, indptr[2] + 1), _set(indptr, -1, len(rows) + 1)):
        all_refuse(wrong, rows)


@needs_library
@pytest.mark.parametrize("n", [5, 125])
def test_n_of_m_without_inputs_is_zero(n):
    for batch in (3, 50):
        x = np.zeros((batch, 0), np.float32)
        nothing = nm_case(np.random.default_rng(0), (0, n), 2, 4)
        y = nothing.dot(x)
        np.testing.assert_array_equal(y, np.zeros((batch, n)))


@needs_library
@pytest.mark.parametrize("batch", [1, 4, 8, 40, 130])
@pytest.mark.parametrize("k", [70, 600])
def test_the_library_counts_the_bits_of_bitmaps(batch, k):
    rng = np.random.default_rng(1)
    x, dy = (rng.standard_normal((batch, size)).astype(np.float32) for size in (k, 130))
    case = bitmap_case(rng, (k, 130), 0.5)
    starts, bits = case.index

    def all_refuse(starts, bits, values=case.values):
        layout = BitmapLayout((k, 130), len(values))
        all_refused(case.replace(index=(starts, bits), values=values, layout=layout), x, dy)

    more, low, fewer, last = (bits.copy() for _ in range(4))
    more[0, 5], low[-1, 5, -1], fewer[0, 5] = 2**32 - 1, 2**31, 0
    last[-1, 129, 0] ^= 1
    for wrong in (more, low, fewer, last):
        all_refuse(starts, wrong)
    all_refuse(starts + 1, bits)
    all_refuse(np.zeros_like(starts), bits)
    without = np.where(np.arange(len(starts)) == 1, 0, starts)  # nothing in the first columns
    all_refuse(without, bits)
    all_refuse(starts[1:], bits)
    all_refuse(starts, bits[:, :, 1:])
    all_refuse(starts, bits, case.values[1:])


@needs_library
def test_products_without_inputs_are_zero():
    case = bitmap_case(np.random.default_rng(0), (0, 3), 1.0, spare=1)
    empty, dy = np.zeros((2, 0), np.float32), np.ones((2, 3), np.float32)
    np.testing.assert_array_equal(case.dot(empty), np.zeros((2, 3)))
    assert case.dot_transposed(dy).shape == (2, 0)
    np.testing.assert_array_equal(case.sampled(empty, dy), [0])
    starts, bits = case.index
    refused(case.replace(index=(starts, bits[:, :, :0])).dot, empty)
