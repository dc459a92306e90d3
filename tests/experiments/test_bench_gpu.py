"""The machinery of the GPU and TPU benchmarks, with the reference in the place of the kernels."""

import json
import math
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from experiments.bench import gpu, timing, tpu

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


@pytest.mark.parametrize("bench", [gpu, tpu])
def test_without_a_device_it_says_so_and_writes_nothing(bench, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(timing, "RESULTS", tmp_path)
    monkeypatch.setattr(sys, "argv", ["bench"])
    with pytest.raises(SystemExit) as stopped:
        bench.main()
    assert stopped.value.code == 2
    name = bench.__name__.rpartition(".")[2].upper()
    assert f"there is no {name} here" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_int8_values_are_verified_with_their_scales():
    options = {"blocks": [(32, 96)], "shape": (96, 192), "batches": [5]}
    checks = list(gpu.verify("xla", dtypes=["int8", "float32"], **options))
    assert len(checks) == 6
    assert all(check["right"] for check in checks)


@pytest.mark.parametrize("right", [True, False])
def test_on_a_device_checks_come_before_the_table(right, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(timing, "RESULTS", tmp_path)
    monkeypatch.setattr(sys, "argv", ["bench", "--minutes", "0"])
    check = {"block": [1, 1], "dtype": "int8", "rows": 1, "direction": "dx", "error": 0.0}
    checks = [check | {"right": right}]
    with pytest.raises(SystemExit) as stopped:
        gpu.run("tpu", "xla", None, lambda _: checks, list(tpu.cells()))
    assert stopped.value.code == int(not right)
    assert ("no time was left for 81 cells" in capsys.readouterr().out) == right
    result = json.loads((tmp_path / "tpu.json").read_text())
    assert result["checks"] == checks
    assert not result["rows"]
    assert len(result["no_time_for"]) == (81 if right else 0)
