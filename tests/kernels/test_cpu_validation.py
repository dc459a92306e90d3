"""Indices given by hand: an error which names the entry, and never a crash."""

import numpy as np
import pytest
from cpu_cases import bitmap_case, block_case, csc_case, nm_case

from jaxsparse.kernels import cpu

needs_library = pytest.mark.skipif(cpu.available() is not None, reason=str(cpu.available()))


def test_good_indices_pass():
    rng = np.random.default_rng(0)
    for density in (0.0, 0.3, 1.0):
        case = block_case(rng, (100, 70), (4, 16), density, spare=2)
        cpu.validate_block(*case.index, block=(4, 16), shape=(100, 70))
        cpu.validate_csc(*csc_case(rng, (100, 70), density, spare=2).index, shape=(100, 70))
    cpu.validate_nm(*nm_case(rng, (100, 70), 2, 4).index, n=2, m=4, shape=(100, 70))


@pytest.mark.parametrize(
    ("indptr", "rows", "message"),
    [
        ([0, 1], [0], "shape"),
        ([0, 2, 1], [0, 1], "falls in between"),
        ([1, 1, 2], [0, 1], "from 1"),
        ([0, 1, 3], [0, 1], "at most 2"),
        ([0, 1, 2], [0, 4], "row 4 of entry 1"),
        ([0, 1, 2], [-1, 0], "row -1 of entry 0"),
        ([0, 0, 2], [2, 1], "entries 0 and 1"),
        ([0, 2, 2], [1, 1], "ascend"),
    ],
)
def test_faults_are_named(indptr, rows, message):
    with pytest.raises(ValueError, match=message):
        cpu.validate_csc(np.array(indptr), np.array(rows), shape=(4, 2))
    with pytest.raises(ValueError, match=message):
        cpu.validate_block(np.array(indptr), np.array(rows), block=(8, 16), shape=(32, 32))


def test_positions_of_another_shape():
    with pytest.raises(ValueError, match=r"\(1, 4\)"):
        cpu.validate_nm(np.zeros((2, 4), np.uint32), n=2, m=4, shape=(16, 4))


def refused(product, *arguments, **options):
    with pytest.raises(Exception, match="jaxsparse cpu kernel"):
        np.asarray(product(*arguments, **options))


@needs_library
@pytest.mark.parametrize("batch", [1, 4, 8, 40, 200])
def test_the_library_refuses_what_it_cannot_read(batch):
    rng = np.random.default_rng(1)
    x, dy = (rng.standard_normal((batch, size)).astype(np.float32) for size in (64, 32))
    shape = {"shape": (64, 32)}
    case = block_case(rng, (64, 32), (16, 16), 1.0)
    indptr, rows = case.index
    for wrong in (rows + 1, rows - 1, rows + 2**30):
        wrong = wrong.astype(np.int32)
        refused(cpu.block_dot, x, case.values, indptr, wrong, **shape)
        refused(cpu.block_dot_transposed, dy, case.values, indptr, wrong, **shape)
        refused(cpu.block_sampled, x, dy, indptr, wrong, block=(16, 16))
    for wrong in (indptr + 1, indptr[::-1], indptr[:-1]):
        refused(cpu.block_dot, x, case.values, wrong, rows, **shape)
    refused(cpu.block_dot, x, case.values[:, :, :8], indptr, rows, **shape)
    case = csc_case(rng, (64, 32), 0.5)
    refused(cpu.csc_dot, x, case.values, case.index[0][:-1], case.index[1], **shape)

    case = nm_case(rng, (64, 32), 2, 4)
    refused(cpu.nm_dot, x, case.values, case.index[0][1:], n=2, m=4, **shape)
    refused(cpu.nm_dot, x, case.values, case.index[0], n=1, m=4, **shape)

    cases = block_case(rng, (64, 32), (16, 16), 1.0), csc_case(rng, (64, 32), 0.5), case
    cases += (bitmap_case(rng, (64, 32), 0.5),)
    for case in cases:
        product = getattr(cpu, f"{case.storage}_dot")
        for scales in (x[0, :31], x[:1, :32]):
            refused(product, x, case.values, *case.index, scales=scales, **case.options)


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

    def all_refuse(indptr, rows):
        refused(cpu.csc_dot, x, case.values, indptr, rows, shape=(k, n))
        refused(cpu.csc_dot_transposed, dy, case.values, indptr, rows, shape=(k, n))
        refused(cpu.csc_sampled, x, dy, indptr, rows)

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
    # Room to spare is nobody's, whatever it says.
    spare = _set(rows, -1, np.iinfo(index_dtype).max)
    np.testing.assert_array_equal(
        cpu.csc_dot(x, case.values, indptr, spare, shape=(k, n)), case.dot(x)
    )


@needs_library
@pytest.mark.parametrize("batch", [1, 40])
def test_every_product_refuses_the_same_blocks(batch):
    rng = np.random.default_rng(batch)
    x, dy = (rng.standard_normal((batch, size)).astype(np.float32) for size in (66, 60))
    case = block_case(rng, (66, 60), (4, 16), 0.6, spare=2)
    (indptr, rows), shape = case.index, {"shape": (66, 60)}
    begin = indptr[1]

    def all_refuse(indptr, rows):
        refused(cpu.block_dot, x, case.values, indptr, rows, **shape)
        refused(cpu.block_dot_transposed, dy, case.values, indptr, rows, **shape)
        refused(cpu.block_sampled, x, dy, indptr, rows, block=(4, 16))

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
        nothing = np.zeros((0, n), np.float32), np.zeros((0, n), np.uint32)
        y = cpu.nm_dot(x, *nothing, n=2, m=4, shape=(0, n))
        np.testing.assert_array_equal(y, np.zeros((batch, n)))


@needs_library
@pytest.mark.parametrize("batch", [1, 4, 8, 40, 130])
@pytest.mark.parametrize("k", [70, 600])
def test_the_library_counts_the_bits_of_bitmaps(batch, k):
    rng = np.random.default_rng(1)
    x, dy = (rng.standard_normal((batch, size)).astype(np.float32) for size in (k, 130))
    case = bitmap_case(rng, (k, 130), 0.5)
    (starts, bits), shape = case.index, {"shape": (k, 130)}

    def all_refuse(starts, bits, values=case.values):
        refused(cpu.bitmap_dot, x, values, starts, bits, **shape)
        refused(cpu.bitmap_dot_transposed, dy, values, starts, bits, **shape)
        refused(cpu.bitmap_sampled, x, dy, starts, bits, nnz=len(values))

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
    starts, bits = np.zeros(2, np.int32), np.zeros((1, 3, 1), np.uint32)
    values, empty = np.ones(1, np.float32), np.zeros((2, 0), np.float32)
    y = cpu.bitmap_dot(empty, values, starts, bits, shape=(0, 3))
    np.testing.assert_array_equal(y, np.zeros((2, 3)))
    dy = np.ones((2, 3), np.float32)
    assert cpu.bitmap_dot_transposed(dy, values, starts, bits, shape=(0, 3)).shape == (2, 0)
    np.testing.assert_array_equal(cpu.bitmap_sampled(empty, dy, starts, bits, nnz=1), [0])
    refused(cpu.bitmap_dot, empty, values, starts, bits[:, :, :0], shape=(0, 3))
