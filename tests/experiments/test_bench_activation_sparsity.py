"""What the benchmark of skipped activations makes of its cells."""

import numpy as np
import pytest

from experiments.bench import activation_sparsity as bench


def cell(active, over, layer="8x8", dtype="float32", batch=1):
    return {
        "layer": layer,
        "weights": 0.1,
        "active": active,
        "dtype": dtype,
        "batch": batch,
        "usual": "CSC",
        "ms": {"CSR": 1.0, "usual": over, "jnp.dot": 9.0},
        "over_usual": over,
        "over_dot": 9.0,
    }


def test_break_even_is_interpolated_in_float32():
    rows = [cell(1.0, 0.8), cell(0.5, 2.0), cell(0.8, 1.2), cell(0.9, 0.1, dtype="int8")]
    rows += [cell(1.0, 1.1, batch=2), cell(0.5, 2.0, batch=2)]
    assert bench.break_even(rows) == {"8x8, batch 1": 0.9, "8x8, batch 2": None}


def test_the_table_has_every_cell_and_marks_those_that_lose():
    rows = [cell(1.0, 0.8), cell(0.5, 2.0)]
    head, _, losing, winning = bench.table(rows).splitlines()
    assert head.count("|") == losing.count("|")
    assert "**0.80**" in losing and "**" not in winning
    axes = bench.figure(rows).axes[0]
    assert list(axes.lines[0].get_xdata()) == [0.5, 1.0]


def test_activations_have_exactly_their_share():
    x = bench.activations(200, 0.35, 3)
    assert (np.count_nonzero(x, axis=1) == 70).all()
    assert (x[0] != x[1]).any()
    dense, mask = bench.draw((50, 40), 0.1)
    assert ((dense != 0) <= mask).all() and mask.mean() == pytest.approx(0.1, abs=0.03)
