"""The machinery around what else multiplies on a GPU, with the reference in its place."""

import math
import sys
import types

import jax.numpy as jnp
import numpy as np
import pytest

import jaxsparse as js
from experiments.bench import gpu, gpu_others


@pytest.mark.parametrize("pattern", [js.NM(2, 4), js.Block(16, 16)], ids=str)
def test_verification_knows_right_from_wrong(pattern, monkeypatch):
    options = {"dtypes": ["bfloat16"], "shape": (64, 48), "batches": [5]}
    checks = list(gpu_others.verify("xla", pattern, **options))
    assert [check["direction"] for check in checks] == list(gpu_others.DIRECTIONS)
    assert all(check["right"] for check in checks)
    assert max(check["error"] for check in checks) > 0
    for poison in (np.nan, 1.0):
        monkeypatch.setattr(
            gpu_others,
            "matrix_product",
            lambda x, packed, *, transpose, implementation, poison=poison: jnp.full(
                (x.shape[0], packed.shape[0 if transpose else 1]), poison
            ),
        )
        checks = gpu_others.verify("xla", pattern, **options)
        assert [check["right"] for check in checks] == [False, False, True]


@pytest.mark.parametrize("direction", gpu_others.DIRECTIONS)
def test_a_row_of_blocks(direction, monkeypatch):
    monkeypatch.setattr(gpu, "CALLS", 2)
    row = gpu_others.measure_blocks((16, 16), 0.5, (64, 48), 8, direction, "xla")
    assert set(row["ms"]) == {"jnp.dot", "xla"}
    assert (row["block"], row["direction"]) == ([16, 16], direction)


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
    monkeypatch.setattr(gpu_others, "TRITON", [])
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
