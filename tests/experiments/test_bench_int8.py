"""The benchmark of INT8 at tiny sizes: every row is there, and the models agree."""

import sys

import jax
import numpy as np
import pytest

from experiments.bench import int8, int8_peers

TINY = int8.Sizes(tables=3, rows=5, dense=4, width=8, bottom=(16,), top=(32, 32, 16, 8))


def test_mlperf_s_sizes():
    sizes = int8.Sizes()
    towers = jax.eval_shape(lambda: int8.nnx.state(int8.built("towers", sizes)))
    kernels = {
        path: leaf.shape for path, leaf in int8.js.leaves_by_path(towers).items() if leaf.ndim == 2
    }
    assert sizes.joined == 479 and kernels["top/layers_0/kernel"] == (479, 1024)
    rules = int8.SPARSE
    sparse = [np.prod(s) for p, s in kernels.items() if any(rule.matches(p, s) for rule in rules)]
    share = sum(sparse) / sum(np.prod(shape) for shape in kernels.values())
    assert share == pytest.approx(0.665, abs=1e-3)  # of the multiplications


@pytest.mark.slow
def test_models_agree_and_every_row_is_there(monkeypatch, tmp_path, capsys):
    for part in ("model", "towers"):
        runs = {name: run(int8.inputs(TINY, 16)) for name, run in int8.models(part, TINY).items()}
        found = {name: jax.tree.leaves(run()) for name, run in runs.items()}
        for one, two in ((int8.F32, int8.INT8), (int8.F32_SPARSE, int8.INT8_SPARSE)):
            for a, b in zip(found[one], found[two], strict=True):
                assert a.shape == b.shape
                np.testing.assert_allclose(a, b, atol=0.1 * float(np.abs(a).max()))
    monkeypatch.setattr(int8, "Sizes", lambda: TINY)
    monkeypatch.setattr(int8, "RESULTS", tmp_path)
    monkeypatch.setattr(int8, "write", lambda name, result: made.append(result) or name)
    monkeypatch.setattr(sys, "argv", ["int8", "--rounds", "2", "--batches", "1", "3"])
    made = []
    int8.main()
    [result] = made
    peers = list(int8_peers.installed(1))
    keys = [(row["part"], row["batch"], row["model"]) for row in result["rows"]]
    expected = [(p, b, m) for p in ("model", "towers") for b in (1, 3) for m in int8.MODELS]
    expected += [
        (p, b, m) for p in ("32x32", "32x16") for b in (1, 3) for m in (*int8.MODELS, *peers)
    ]
    assert keys == expected
    assert all(row["speedup"] == 1 for row in result["rows"] if row["model"] == int8.INT8)
    text = capsys.readouterr().out
    assert "| Offline QPS | 5732 | 23174 (1.0x) | 36883 (1.6x) |" in text
    assert (tmp_path / "int8.md").read_text().startswith("Milliseconds at the 50th")


@pytest.mark.parametrize("name", ["ONNX Runtime u8s8", "ONNX Runtime u8u8"])
def test_a_peer_multiplies_and_says_what_it_loses(name):
    pytest.importorskip("onnx", reason="onnx is not installed")
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    peer = int8_peers.installed(1)[name]
    rng = np.random.default_rng(0)
    x = rng.integers(0, 64, (3, 20)).astype(np.uint8)
    weight = rng.integers(-63, 64, (20, 5)).astype(np.int8)
    np.testing.assert_array_equal(peer(weight)(x)(), x.astype(int) @ weight.astype(int))
    lost = int8_peers.shortfalls({name: peer})[name]
    assert lost == 0 if name.endswith("u8u8") else 0 <= lost < 0.6


def test_what_saturates_is_told_apart_in_the_table():
    row = {"part": "32x32", "batch": 1, "qps": 10, "p50_ms": 1.0, "p90_ms": 2.0, "p99_ms": 3.0}
    rows = [row | {"model": int8.INT8, "speedup": 1.0}, row | {"model": "peer", "speedup": 0.5}]
    lines = int8.markdown({"rows": rows, "lost": {int8.INT8: 0.0, "peer": 0.494}}).splitlines()
    assert "| INT8 dense | 1 / 2 / 3, 10/s, 1.00 | exact |" in lines
    assert "| peer | 1 / 2 / 3, 10/s, **0.50** | 49.4% |" in lines
