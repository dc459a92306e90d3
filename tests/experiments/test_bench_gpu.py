"""The machinery of the GPU and TPU benchmarks, with the reference in the place of the kernels."""

import json
import math
import sys

import jax.numpy as jnp
import numpy as np
import pytest

import jaxsparse as js
from experiments.bench import gates, gpu, gpu_inputs, timing, tpu

BLOCK = js.Block(64, 64)
CELL = gpu.Cell(BLOCK, "bfloat16", 0.5, (128, 192), 16, "forward")


@pytest.mark.parametrize(
    ("pattern", "dtype", "directions"),
    [
        (BLOCK, "bfloat16", ["forward", "dx", "dvalues"]),
        (BLOCK, "int8", ["forward", "dx", "dvalues"]),
        (js.Block(32, 64), "float32", ["forward", "dx", "dvalues"]),
        (BLOCK, "float8_e4m3fn", ["forward", "dx"]),
        (js.NM(2, 4), "float16", ["forward"]),
        (js.NM(2, 4), "int8", ["forward"]),
    ],
)
def test_verification_knows_right_from_wrong(pattern, dtype, directions, monkeypatch):
    wanted = [gpu.Check(pattern, dtype, (128, 192), 5)]
    checks = list(gpu.verify("xla", wanted))
    assert [check["direction"] for check in checks] == directions
    assert all(check["right"] for check in checks)
    for poison in (np.nan, 1.0):
        monkeypatch.setattr(
            gpu_inputs,
            "matrix_product",
            lambda x, p, *, transpose, implementation, out_dtype, poison=poison: jnp.full(
                (x.shape[0], p.shape[0 if transpose else 1]), poison
            ),
        )
        right = [check["right"] for check in gpu.verify("xla", wanted)]
        assert right == [False, False, True][: len(directions)]


def test_the_kernels_take_all_that_is_verified_and_measured():
    from jaxsparse.kernels import pallas_gpu
    from jaxsparse.kernels.layouts import BlockLayout, NMLayout

    def like(rows, size, dtype):
        return np.broadcast_to(jnp.zeros((), dtype), (rows, size))

    wanted = [
        (case.pattern, case.dtype, case.shape, case.rows, direction)
        for case in gpu.checks()
        for direction in gpu_inputs.directions_of(case.pattern, case.dtype)
    ]
    wanted += [(c.pattern, c.dtype, c.shape, c.rows, c.direction) for c in gpu.cells()]
    for pattern, dtype, shape, rows, direction in wanted:
        if isinstance(pattern, js.NM):
            layout = NMLayout(shape, 2, 4)
        else:
            layout = BlockLayout(shape, (pattern.rows, pattern.columns), 8)
        kind = gpu_inputs.x_dtype(dtype)
        x, g = (like(rows, size, kind) for size in shape)
        values = like(1, 1, dtype)
        out_dtype = jnp.dtype("bfloat16" if kind == "float8_e4m3fn" else kind)
        call = {
            "forward": ("product", layout, x, values, out_dtype, False),
            "dx": ("product", layout, g, values, out_dtype, True),
            "dvalues": ("sampled", layout, x, g, out_dtype),
        }[direction]
        assert pallas_gpu.unsupported(*call) is None


def test_a_program_of_dependent_calls_makes_every_one():
    calls = []

    def function(x):
        calls.append(x.shape)  # traced once: the calls are a loop
        return x * 2

    assert gpu.repeated(function, (jnp.ones((2, 3)),))() == 2
    assert calls == [(2, 3)]


@pytest.mark.slow
def test_a_row_of_the_table_for_every_direction_until_the_deadline():
    cells = [CELL._replace(direction=direction) for direction in gpu.DIRECTIONS]
    rows, left = gpu.table("xla", math.inf, cells)
    assert [row["direction"] for row in rows] == list(gpu.DIRECTIONS)
    assert not left
    json.dumps(rows)
    for row in rows:
        np.testing.assert_allclose(row["speedup"], row["dense_ms"] / row["ms"])
        # Half of the blocks are kept, so half of the operations are useful.
        np.testing.assert_allclose(row["tflops"] / row["dense_tflops"], row["speedup"] / 2)
    assert gpu.table("xla", -math.inf, cells) == ([], cells)


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
    product, sampled, *missing, decode = gates.verdicts(rows)
    assert (product["met"], product["worst"], product["best"]) == (False, 430 / 800, 0.75)
    assert gates.line(product).endswith("efficiency at least 0.55: MISSED, 0.54 to 0.75")
    assert (sampled["met"], sampled["worst"]) == (True, 0.5)
    assert (decode["met"], decode["worst"]) == (True, 1.2)
    assert [verdict["met"] for verdict in missing] == [None, None]
    assert gates.line(missing[0]).endswith("not measured")


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


@pytest.mark.parametrize("right", [True, False])
def test_on_a_device_checks_come_before_the_table(right, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(timing, "RESULTS", tmp_path)
    monkeypatch.setattr(sys, "argv", ["bench", "--minutes", "0"])
    check = {"storage": "1x1", "dtype": "int8", "rows": 1, "direction": "dx", "error": 0.0}
    checks = [check | {"right": right}]
    monkeypatch.setattr(gpu, "verify", lambda *_: checks)
    with pytest.raises(SystemExit) as stopped:
        gpu.run("tpu", "xla", None, [], tpu.cells())
    assert stopped.value.code == int(not right)
    assert ("no time was left for 81 cells" in capsys.readouterr().out) == right
    result = json.loads((tmp_path / "tpu.json").read_text())
    assert result["checks"] == checks
    assert not result["rows"]
    assert len(result["no_time_for"]) == (81 if right else 0)
