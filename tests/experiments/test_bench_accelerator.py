"""The machinery of the GPU and TPU benchmarks, with the reference in the place of the kernels."""

import json
import math
import sys

import jax.numpy as jnp
import numpy as np
import pytest

import jaxsparse as js
from experiments import measurements
from experiments.bench import accelerator, accelerator_inputs, gates
from experiments.bench.accelerator_inputs import DIRECTIONS

BLOCK = js.Block(64, 64)
CELL = accelerator.Cell(BLOCK, "bfloat16", 0.5, (128, 192), 16, "forward")


@pytest.mark.parametrize(
    ("pattern", "dtype", "directions"),
    [
        (BLOCK, "bfloat16", DIRECTIONS),
        (BLOCK, "int8", DIRECTIONS),
        (js.Block(32, 64), "float32", DIRECTIONS),
        (BLOCK, "float8_e4m3fn", ("forward", "dx")),
        (js.NM(2, 4), "bfloat16", DIRECTIONS),
        (js.NM(2, 4), "int8", ("forward",)),
        (js.NM(1, 4), "float16", ("dvalues", "forward")),
    ],
)
def test_verification_knows_right_from_wrong(pattern, dtype, directions, monkeypatch):
    wanted = [accelerator.Check(pattern, dtype, (128, 192), 5, directions)]
    checks = list(accelerator.verify("xla", wanted))
    assert [check["direction"] for check in checks] == list(directions)
    assert all(check["right"] for check in checks)
    for poison in (np.nan, 1.0):
        monkeypatch.setattr(
            accelerator_inputs,
            "matrix_product",
            lambda x, p, *, transpose, implementation, out_dtype, poison=poison: jnp.full(
                (x.shape[0], p.shape[0 if transpose else 1]), poison
            ),
        )
        right = [check["right"] for check in accelerator.verify("xla", wanted)]
        assert right == [direction == "dvalues" for direction in directions]


def test_a_failure_is_a_wrong_kernel_and_the_next_is_verified(monkeypatch):
    def fails(x, packed, *, transpose, implementation, out_dtype):
        raise NotImplementedError("no such instruction\nat line 7")

    monkeypatch.setattr(accelerator_inputs, "matrix_product", fails)
    wanted = [accelerator.Check(BLOCK, "float32", (128, 192), 5)]
    forward, dx, dvalues = map(accelerator._printed, accelerator.verify("xla", wanted))
    assert not forward["right"] and not dx["right"] and dvalues["right"]
    assert forward["reason"] == "NotImplementedError: no such instruction"


def test_verification_knows_a_wrong_gradient(monkeypatch):
    def wrong(x, g, packed, *, implementation):
        return packed.values.at[0, 0, 0].add(1)

    monkeypatch.setattr(accelerator_inputs, "sampled_product", wrong)
    wanted = [accelerator.Check(BLOCK, "float32", (128, 192), 5)]
    right = [check["right"] for check in accelerator.verify("xla", wanted)]
    assert right == [True, True, False]


def test_a_program_of_dependent_calls_makes_every_one():
    calls = []

    def function(x):
        calls.append(x.shape)  # traced once: the calls are a loop
        return x * 2

    assert accelerator.repeated(function, (jnp.ones((2, 3)),))() == 2
    assert calls == [(2, 3)]


@pytest.mark.slow
def test_a_row_of_the_table_for_every_direction_until_the_deadline():
    cells = [CELL._replace(direction=direction) for direction in DIRECTIONS]
    rows, missing = accelerator.table("xla", math.inf, cells)
    assert [row["direction"] for row in rows] == list(DIRECTIONS)
    assert not missing
    json.dumps(rows)
    for row in rows:
        np.testing.assert_allclose(row["speedup"], row["dense_ms"] / row["ms"])
        # Half of the blocks are kept, so half of the operations are useful.
        np.testing.assert_allclose(row["tflops"] / row["dense_tflops"], row["speedup"] / 2)
    late = {str(cell): accelerator.NO_TIME for cell in cells}
    assert accelerator.table("xla", -math.inf, cells) == ([], late)


def test_what_fails_is_missing_with_its_reason_and_the_rest_is_measured(capsys):
    def row_of(item):
        return {"part": 1 / item}

    rows, missing = accelerator.until(math.inf, [1, 0, 2], row_of)
    assert rows == [{"part": 1}, {"part": 0.5}]
    assert missing == {"0": "ZeroDivisionError: division by zero"}
    assert "0: ZeroDivisionError" in capsys.readouterr().out


def test_gates_are_judged_by_their_worst_row():
    def row(direction, tflops, rows=8192, speedup=1.0, storage="128x128", dtype="bfloat16"):
        return locals() | {"dense_tflops": 800.0}

    rows = [
        row("forward", 600.0),
        row("dx", 430.0),
        row("dvalues", 400.0),
        row("dvalues", 8.0, rows=256),  # too few rows to be judged
        row("dx", 1.0, dtype="int8"),
        row("forward", 2.0, rows=1, speedup=1.5, storage="2:4"),
        row("forward", 2.0, rows=64, speedup=1.2, storage="2:4"),
    ]
    assert gates.add_efficiency(rows) == 800
    product, sampled, *missing, decode = gates.verdicts(gates.HOPPER, rows)
    assert (product["met"], product["worst"], product["best"]) == (False, 430 / 800, 0.75)
    assert gates.line(product).endswith("efficiency at least 0.55: MISSED, 0.54 to 0.75")
    assert (sampled["met"], sampled["worst"]) == (True, 0.5)
    assert (decode["met"], decode["worst"]) == (True, 1.2)
    assert [verdict["met"] for verdict in missing] == [None, None]
    assert gates.line(missing[0]).endswith("not measured")


CHECK = {"implementation": "xla", "storage": "1x1", "dtype": "int8", "rows": 1}
CHECK |= {"direction": "dx", "error": 0.0}
OTHER = CHECK | {"implementation": "other"}
LATER = {"label": "later"}
SAME = CELL._replace(pattern=js.Block(1, 1), dtype="int8", direction="dx")  # as CHECK's
CELLS = [SAME, CELL, CELL._replace(rows=32)]


@pytest.fixture
def started(monkeypatch, tmp_path):
    """A run started with two verified kernels, and what it did: exit code, result, deadlines."""
    monkeypatch.setattr(measurements, "RESULTS", tmp_path)
    done = []

    def table(implementation, deadline, cells):
        done.append("table")
        return accelerator.until(deadline, cells, lambda cell: {"dense_tflops": 1, "tflops": 1})

    monkeypatch.setattr(accelerator, "table", table)

    def start(right=(True, True), others=True, reason=None, minutes=0, **options):
        monkeypatch.setattr(sys, "argv", ["bench", "--minutes", str(minutes)])

        def verify(*_):
            done.append("checks")
            yield CHECK | {"right": right[0]}

        def verify_others():
            done.append("others' checks")
            yield OTHER | {"right": right[1]}

        def measure_others(deadline):
            done.append("others' rows")
            assert json.loads((tmp_path / "any.json").read_text())["checks"] is not None
            return accelerator.until(deadline, ["a", "b"], lambda label: LATER)

        monkeypatch.setattr(accelerator, "verify", verify)
        given = accelerator.Others({"third": "not today"}, verify_others, measure_others)
        with pytest.raises(SystemExit) as stopped:
            accelerator.run(
                "any", "xla", reason, [], CELLS, others=given if others else None, **options
            )
        path = tmp_path / "any.json"
        return stopped.value.code, done, json.loads(path.read_text()) if path.exists() else None

    return start


def test_all_checks_come_before_the_table_and_the_others_after(started, capsys):
    code, done, result = started()
    assert (code, done) == (0, ["checks", "others' checks", "table", "others' rows"])
    assert result["checks"] == [CHECK | {"right": True}]
    assert (result["rows"], len(result["missing"])) == ([], 3)
    assert result["others"] == {
        "absent": {"third": "not today"},
        "checks": [OTHER | {"right": True}],
        "rows": [],
        "missing": {"a": accelerator.NO_TIME, "b": accelerator.NO_TIME},
    }
    printed = capsys.readouterr().out
    assert "third is left out: not today" in printed
    assert "0 of 2 kernels wrong, 0 cells measured" in printed
    assert "5 cells are missing: no time was left" in printed


def test_a_wrong_kernel_is_not_measured(started, capsys):
    code, done, result = started((False, True), minutes=9)
    assert (code, done) == (1, ["checks", "others' checks", "table", "others' rows"])
    wrong, *right = CELLS
    assert result["missing"] == {str(wrong): "its check failed"}
    assert len(result["rows"]) == len(right) and len(result["others"]["rows"]) == 2
    printed = capsys.readouterr().out
    assert "1 of 2 kernels wrong, 4 cells measured" in printed
    assert "xla:     1x1          int8 rows   1      dx: error 0.0e+00 WRONG" in printed


def test_of_the_others_none_is_measured_where_one_is_wrong(started):
    code, done, result = started((True, False), minutes=9)
    assert (code, done) == (1, ["checks", "others' checks", "table"])
    assert len(result["rows"]) == 3 and not result["others"]["rows"]


def test_what_cannot_run_is_left_out_and_the_others_are_not(started, capsys):
    code, done, result = started(reason="it needs another GPU", minutes=9, judged_by=gates.HOPPER)
    assert (code, done) == (0, ["others' checks", "others' rows"])
    assert result["absent"] == {"xla": "it needs another GPU"}
    assert not result["checks"] and not result["rows"] and not result["gates"]
    assert result["others"]["rows"] == [LATER, LATER]
    printed = capsys.readouterr().out
    assert "xla is left out: it needs another GPU" in printed
    assert "0 of 1 kernels wrong, 2 cells measured" in printed


def test_without_others_there_may_be_nothing_to_do(started, capsys):
    assert started(reason="it needs another TPU", others=False) == (2, [], None)
    assert "nothing was measured: it needs another TPU" in capsys.readouterr().err


def test_without_others_none_are_written(started):
    code, done, result = started(others=False)
    assert (code, done) == (0, ["checks", "table"])
    assert "others" not in result
    assert len(result["missing"]) == 3
