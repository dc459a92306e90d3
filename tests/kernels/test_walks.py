"""The orders in which kernels walk stored blocks."""

import numpy as np
import pytest

from jaxsparse.kernels import walks
from tests.kernels.block_cases import Case


@pytest.mark.parametrize("transpose", [False, True])
@pytest.mark.parametrize("spare", [0, 3])
def test_a_walk_meets_every_block_once_and_no_spare_room(transpose, spare):
    case = Case((2, 3), (5, 4), rows=1, spare=spare)
    starts, sources, slots = (np.asarray(a) for a in walks.walk(case.index, case.layout, transpose))
    rows, cols = case.places
    strips, inputs = (rows, cols) if transpose else (cols, rows)
    assert starts.shape == (case.grid[0 if transpose else 1] + 1,)
    assert starts[-1] == len(rows)
    for strip in range(len(starts) - 1):
        mine = slice(starts[strip], starts[strip + 1])
        expected = np.flatnonzero(strips == strip)
        np.testing.assert_array_equal(slots[mine], expected)
        np.testing.assert_array_equal(sources[mine], inputs[expected])
    assert sources.max() < case.grid[1 if transpose else 0]


def test_a_ragged_batch_ends_in_zero_rows():
    x = np.ones((3, 2), np.float32)
    assert walks.pad_rows(x, 3) is x
    np.testing.assert_array_equal(walks.pad_rows(x, 4), [[1, 1]] * 3 + [[0, 0]])
