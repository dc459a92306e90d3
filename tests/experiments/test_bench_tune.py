"""The tuner's decisions, without the GPU that it measures on."""

import dataclasses
import json
import math
import sys

import pytest

from experiments.bench import tune
from jaxsparse.kernels import mosaic_gpu
from jaxsparse.kernels.mosaic_gpu import configs
from tests.kernels.hopper import compile_for_h200, needs_compiler

KIND = tune.Class("product", (128, 128), 2, 4096)
FAST, SLOW = configs.Config(128, 2, 3), configs.Config(64, 1, 2)
needs_mosaic = pytest.mark.skipif(bool(mosaic_gpu.missing()), reason=str(mosaic_gpu.missing()))


@pytest.mark.parametrize("kind", tune.classes(), ids=str)
def test_every_candidate_fits_and_none_is_asked_twice(kind):
    found = tune.candidates(kind)
    out_bytes = tune.OUT_BYTES[kind.op]
    assert found[0] == configs.heuristic(kind.op, kind.block, kind.rows, out_bytes, kind.bytes)
    assert 1 < len(found) == len(set(found)) <= 25
    for config in found:
        assert config.stages >= 2
        used = configs.shared_memory(kind.op, kind.block, config, out_bytes, kind.bytes)
        assert used <= configs.SHARED_MEMORY
        if kind.op == "product":
            assert config.tile_rows <= max(64, 2 * kind.rows)


def test_the_fastest_is_chosen_but_not_for_noise():
    assert tune.best({SLOW: 2.0, FAST: 1.0}, SLOW) == FAST
    assert tune.best({SLOW: 1.01, FAST: 1.0}, SLOW) == SLOW
    assert tune.best({FAST: 1.0}, SLOW) == FAST  # the reasoned one did not compile


def test_what_is_written_is_what_is_read(monkeypatch, tmp_path):
    few = KIND._replace(rows=32)
    monkeypatch.setattr(tune, "TUNED", tmp_path / "tuned")
    monkeypatch.setattr(configs, "__file__", str(tmp_path / "configs.py"))
    device = "NVIDIA H901"
    tune.write(device, {few: SLOW, KIND: SLOW})
    path = tune.write(device, {KIND: FAST})  # the other class stays
    assert path.name == "NVIDIA_H901.json"
    written = json.loads(path.read_text())
    assert [(e["rows"], configs.Config(**e["config"])) for e in written] == [
        (4096, FAST),
        (32, SLOW),
    ]
    for rows, expected in ((8192, FAST), (4096, FAST), (4095, SLOW), (32, SLOW)):
        assert configs.configure("product", (128, 128), rows, 2, device) == expected
    heuristic = configs.heuristic("product", (128, 128), 31, 2)
    assert configs.configure("product", (128, 128), 31, 2, device) == heuristic
    # Results of 32 bits take more room: fewer stages, never too much memory.
    wide = dataclasses.replace(FAST, stages=configs.MOST_STAGES)
    tune.write("NVIDIA H902", {KIND: wide})
    found = configs.configure("product", (128, 128), 4096, 4, "NVIDIA H902")
    assert found.stages < wide.stages
    assert configs.shared_memory("product", (128, 128), found, 4) <= configs.SHARED_MEMORY


@needs_mosaic
@pytest.mark.parametrize("kind", [KIND, tune.Class("sampled", (32, 32), 2, 4096)], ids=str)
def test_classes_are_tuned_until_the_deadline(kind, monkeypatch):
    monkeypatch.setattr(tune, "classes", lambda: [kind])
    monkeypatch.setattr(tune, "operands", lambda *a: None)
    monkeypatch.setattr(tune, "compiled", lambda kind, config, sms: config)
    monkeypatch.setattr(tune, "seconds", lambda runs: {c: float(c.stages) for c in runs})
    found, left = tune.tune(132, math.inf)
    assert found[kind].stages == min(c.stages for c in tune.candidates(kind))
    assert not left
    assert tune.tune(132, -math.inf) == ({}, [kind])


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize(
    "kind",
    [KIND, tune.Class("sampled", (64, 64), 2, 4096), tune.Class("product", (128, 128), 1, 4096)],
    ids=str,
)
def test_what_is_timed_compiles(kind, monkeypatch):
    monkeypatch.setattr(tune, "SHAPE", (512, 512))
    tune.operands.cache_clear()
    for config in tune.candidates(kind)[:2]:
        compile_for_h200(*flat(tune.call(kind, config, 132)))
    tune.operands.cache_clear()


def flat(called):
    function, operands = called
    return function, *operands


def test_without_a_gpu_it_says_so_and_writes_nothing(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(tune, "TUNED", tmp_path)
    monkeypatch.setattr(sys, "argv", ["tune"])
    with pytest.raises(SystemExit) as stopped:
        tune.main()
    assert stopped.value.code == 2
    assert "nothing was tuned: there is no GPU here" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
