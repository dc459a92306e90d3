"""The machinery around what else multiplies on a GPU, with the reference in its place."""

import math
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsparse as js
from experiments.bench import accelerator, accelerator_inputs, gpu_others
from experiments.bench.accelerator_inputs import DIRECTIONS
from jaxsparse import kernels

BLOCK_ROW = {"implementation": "triton", "storage": "1x1", "ms": 1.0, "speedup": 1.0}
BLOCK_ROW |= {"tflops": 1.0, "dense_tflops": 1.0, "gbytes": 1.0}


@pytest.fixture
def stand_in(monkeypatch):
    """The reference in the place of Triton and cuSPARSELt, which has two algorithms."""

    def multiply(x, compressed, *, outputs, algorithm=None):
        if algorithm is not None and algorithm > 1:
            raise jax.errors.JaxRuntimeError("no such algorithm")
        return (x @ compressed.reshape(-1, outputs)).astype(x.dtype)

    monkeypatch.setattr(gpu_others.cusparselt, "multiply", multiply)
    monkeypatch.setattr(
        gpu_others.cusparselt, "compress", lambda *arrays, layout: layout.todense(*arrays)
    )
    monkeypatch.setattr(gpu_others, "TRITON", "xla")
    monkeypatch.setattr(gpu_others, "CUSPARSELT", "xla")
    monkeypatch.setattr(accelerator, "CALLS", 2)
    monkeypatch.setattr(gpu_others, "BLOCKS", [js.Block(16, 16)])
    monkeypatch.setattr(gpu_others, "HALVES", ["bfloat16"])
    monkeypatch.setattr(gpu_others, "FACTORS", ["float32"])
    monkeypatch.setattr(gpu_others, "HALF", "float32")


@pytest.mark.slow
def test_every_product_is_verified(stand_in, monkeypatch):
    rows = list(gpu_others.verify({}))
    assert all(row["right"] for row in rows)
    assert max(row["error"] for row in rows) > 0
    kinds = {(row["implementation"], row["storage"], row["direction"]) for row in rows}
    assert kinds == {
        *(("xla", storage, way) for storage in ("16x16", "2:4") for way in DIRECTIONS),
        ("xla, compressed before", "2:4", "forward"),
    }
    monkeypatch.setattr(
        gpu_others.cusparselt, "multiply", lambda x, *_, outputs: jnp.ones((x.shape[0], outputs))
    )
    rows = [row for row in gpu_others.verify({}) if row["storage"] == "2:4"]
    assert {row["implementation"] for row in rows if not row["right"]} == {"xla, compressed before"}


def test_a_row_of_two_four(stand_in):
    row = gpu_others.two_four((64, 48), 8)
    assert (row["shape"], row["rows"]) == ([64, 48], 8)
    assert list(row["times_ms"]) == [
        "jnp.dot",
        "shared columns",
        "cusparselt, compressing",
        "cusparselt",
        "cusparselt, algorithm 0",
        "cusparselt, algorithm 1",
    ]
    assert min(row["times_ms"].values()) > 0


def test_what_is_missing_is_left_out_with_its_reason(monkeypatch):
    monkeypatch.setattr(accelerator, "unavailable", lambda name, pattern: f"no {name} today")
    monkeypatch.setattr(gpu_others, "torch_missing", lambda: "no torch today")
    others = gpu_others.here()
    assert others.absent == {n: f"no {n} today" for n in ("triton", "cusparselt", "torch")}
    assert not list(others.verify())
    assert others.measure(math.inf) == ([], {})


def test_what_is_there_is_measured_until_the_deadline(monkeypatch, capsys):
    monkeypatch.setattr(accelerator, "unavailable", lambda name, pattern: None)
    monkeypatch.setattr(gpu_others, "torch_missing", lambda: "no torch today")
    monkeypatch.setattr(
        accelerator, "measure", lambda cell, implementation: BLOCK_ROW | cell._asdict()
    )
    monkeypatch.setattr(
        gpu_others, "two_four", lambda *cell: {"cell": cell, "times_ms": {"jnp.dot": 1.5}}
    )
    others = gpu_others.here()
    assert others.absent == {"torch": "no torch today"}
    rows, missing = others.measure(math.inf)
    assert [row.get("cell") for row in rows] == [None] * 12 + gpu_others.SHAPES
    assert not missing
    assert "2:4 (4096, 4096) rows 8192: jnp.dot 1.500 ms" in capsys.readouterr().out
    rows, missing = others.measure(-math.inf)
    assert not rows
    two_four = [f"2:4 {shape} rows {n}" for shape, n in gpu_others.SHAPES]
    assert list(missing) == [*map(str, gpu_others.BLOCK_CELLS), *two_four]


def test_what_cannot_run_here_has_a_reason():
    assert accelerator.unavailable("xla", js.Block(128, 128)) is None
    assert accelerator.unavailable("pallas_tpu", js.NM(2, 4)) == "it takes blocks, not NMLayout"
    reason, missing = accelerator.unavailable("cusparselt", js.NM(2, 4)), kernels.load("cusparselt")
    assert reason == missing[1]


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
    packed = accelerator_inputs.weight(js.Block(16, 16), (64, 32), 0.5, "bfloat16")
    found = gpu_others._torch_times(packed, forms, 4)
    assert list(found) == ["torch"]
    assert calls[: accelerator.CALLS + 1] == [(4, 32)] * accelerator.CALLS + ["waited"]
    assert "torch sparse is left out: no kernel" in capsys.readouterr().out


def test_without_torch_it_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    assert gpu_others.torch_missing().startswith("it is not installed")
    blind = types.SimpleNamespace(
        __version__="2.0", cuda=types.SimpleNamespace(is_available=lambda: False)
    )
    monkeypatch.setitem(sys.modules, "torch", blind)
    assert gpu_others.torch_missing() == "torch 2.0 sees no GPU"
