"""The machinery around what else multiplies on a GPU, with the reference in its place."""

import math
import sys
import types

import jax.numpy as jnp
import numpy as np

from experiments.bench import gpu, gpu_others


def test_verification_knows_right_from_wrong(monkeypatch):
    options = {"shape": (64, 48), "batches": [5], "implementation": "xla"}
    checks = list(gpu_others.verify_two_four(**options))
    assert len(checks) == len(gpu.HALVES) * len(gpu.DIRECTIONS)
    assert all(check["right"] for check in checks)
    assert max(check["error"] for check in checks) > 0

    def zeros(x, packed, *, transpose, implementation):
        return jnp.zeros((x.shape[0], packed.shape[0 if transpose else 1]), x.dtype)

    monkeypatch.setattr(gpu, "matrix_product", zeros)
    right = {c["direction"]: c["right"] for c in gpu_others.verify_two_four(**options)}
    assert right == {"forward": False, "dx": False, "dvalues": True}


def test_a_row_of_two_four(monkeypatch):
    monkeypatch.setattr(gpu, "CALLS", 2)
    row = gpu_others.measure_two_four((64, 48), 8, "float32", kept=False)
    assert (row["shape"], row["rows"]) == ([64, 48], 8)
    assert set(row["ms"]) == {"jnp.dot", "shared columns"}
    assert min(row["ms"].values()) > 0


def test_what_is_missing_is_left_out_with_its_reason(monkeypatch, capsys):
    monkeypatch.setattr(gpu_others, "_missing", lambda name: f"no {name} today")
    monkeypatch.setattr(gpu_others, "torch_missing", lambda: "no torch today")
    found = gpu_others.report(math.inf)
    assert found["absent"] == {n: f"no {n} today" for n in ("triton", "cusparselt", "torch")}
    assert not found["checks"] and not found["rows"]
    assert "cusparselt is left out: no cusparselt today" in capsys.readouterr().out


def test_what_is_there_is_verified_and_measured_until_the_deadline(monkeypatch, capsys):
    monkeypatch.setattr(gpu_others, "_missing", lambda name: None)
    monkeypatch.setattr(gpu_others, "torch_missing", lambda: "no torch today")
    check = {"dtype": "bfloat16", "error": 0.5, "right": False}
    monkeypatch.setattr(gpu_others, "verify_triton", lambda: [check])
    monkeypatch.setattr(gpu_others, "verify_two_four", lambda: [check | {"right": True}])
    monkeypatch.setattr(gpu_others, "TRITON_CELLS", [])
    monkeypatch.setattr(
        gpu_others, "measure_two_four", lambda *cell: {"cell": cell, "ms": {"jnp.dot": 1.5}}
    )
    found = gpu_others.report(math.inf)
    assert [c["implementation"] for c in found["checks"]] == ["triton", "cusparselt"]
    assert [row["cell"] for row in found["rows"]] == gpu_others.TWO_FOUR
    assert not found["no_time_for"]
    printed = capsys.readouterr().out
    assert "triton error 5.0e-01 WRONG: dtype bfloat16" in printed
    assert "2:4 (4096, 4096) rows 8192: jnp.dot 1.500 ms" in printed
    found = gpu_others.report(-math.inf)
    assert len(found["no_time_for"]) == len(gpu_others.TWO_FOUR)
    assert not found["rows"]


def test_a_row_of_triton_names_both(monkeypatch):
    monkeypatch.setattr(
        gpu, "measure", lambda *cell: {"cell": cell, "ms": 2.0, "dense_ms": 3.0, "speedup": 1.5}
    )
    cell = gpu_others.TRITON_CELLS[0]
    label, measure = gpu_others._triton_cell(cell)
    assert label == "triton (128, 128) 0.25 (4096, 4096) rows 8192 forward"
    assert measure()["ms"] == {"jnp.dot": 3.0, "triton": 2.0}
    assert measure()["cell"] == (*cell, "triton")


def test_torch_in_every_form_it_has_a_kernel_for(monkeypatch, capsys):
    calls = []
    torch = types.SimpleNamespace(
        bfloat16="bfloat16",
        tensor=lambda array, dtype, device: array,
        randn=lambda *shape, dtype, device: np.ones(shape),
        cuda=types.SimpleNamespace(synchronize=lambda: calls.append("waited")),
        nn=types.SimpleNamespace(
            functional=types.SimpleNamespace(linear=lambda x, w: calls.append((x @ w.T).shape))
        ),
    )
    monkeypatch.setitem(sys.modules, "torch", torch)

    def nothing(weight):
        raise NotImplementedError("no kernel\nfor this")

    forms = {"torch": lambda weight: weight, "torch sparse": nothing}
    found = gpu_others._torch_times(np.ones((64, 32)), forms, 4)
    assert list(found) == ["torch"]
    assert calls[: gpu.CALLS + 1] == [(4, 32)] * gpu.CALLS + ["waited"]
    assert "torch sparse is left out: no kernel" in capsys.readouterr().out


def test_without_torch_it_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    assert gpu_others.torch_missing().startswith("it is not installed")
    blind = types.SimpleNamespace(
        __version__="2.0", cuda=types.SimpleNamespace(is_available=lambda: False)
    )
    monkeypatch.setitem(sys.modules, "torch", blind)
    assert gpu_others.torch_missing() == "torch 2.0 sees no GPU"
