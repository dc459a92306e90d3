"""The GPU benchmark's own machinery, with the reference in the place of the kernels."""

import math
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from experiments.bench import gpu, timing

CELL = ((64, 64), 0.5, (128, 192), 16)


def test_verification_knows_right_from_wrong(monkeypatch):
    options = {"blocks": [(64, 64)], "dtypes": ["bfloat16"], "shape": (128, 192), "batches": [5]}
    checks = list(gpu.verify("xla", **options))
    assert [check["direction"] for check in checks] == gpu.DIRECTIONS
    assert all(check["right"] for check in checks)
    for poison in (np.nan, 1.0):
        monkeypatch.setattr(
            gpu,
            "matrix_product",
            lambda x, p, *, transpose, implementation, poison=poison: jnp.full(
                (x.shape[0], p.shape[0 if transpose else 1]), poison
            ),
        )
        right = [check["right"] for check in gpu.verify("xla", **options)]
        assert right == [False, False, True]


def test_a_program_of_dependent_calls_makes_every_one():
    calls = []

    def function(x):
        calls.append(x.shape)  # traced once: the calls are a loop
        return x * 2

    assert gpu.repeated(function, (jnp.ones((2, 3)),))() == 2
    assert calls == [(2, 3)]


@pytest.mark.slow
def test_a_row_of_the_table_for_every_direction_until_the_deadline():
    cells = [(*CELL, direction) for direction in gpu.DIRECTIONS]
    rows, left = gpu.table("xla", math.inf, cells)
    assert [row["direction"] for row in rows] == gpu.DIRECTIONS
    assert not left
    for row in rows:
        np.testing.assert_allclose(row["speedup"], row["dense_ms"] / row["ms"])
        # Half of the blocks are kept, so half of the operations are useful.
        np.testing.assert_allclose(row["tflops"] / row["dense_tflops"], row["speedup"] / 2)
    assert gpu.table("xla", -math.inf, cells) == ([], cells)


def test_without_a_gpu_it_says_so_and_writes_nothing(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(timing, "RESULTS", tmp_path)
    monkeypatch.setattr(sys, "argv", ["gpu"])
    with pytest.raises(SystemExit) as stopped:
        gpu.main()
    assert stopped.value.code == 2
    assert "there is no GPU here" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
