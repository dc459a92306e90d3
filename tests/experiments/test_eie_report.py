"""The EIE report: one published layer, and the layers of a tiny run."""

import json

import numpy as np
import pytest
import toys

from experiments import train
from experiments.eie import __main__ as command
from experiments.eie import figures, page, published, trained
from jaxsparse.activations import eie


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    config = toys.config(
        rules=((r"layers_\d+/kernel", "unstructured"),), recipe__name="one_shot", recipe__begin=12
    )
    train.run(config, str(folder), html=False)
    return folder


def test_the_report_counts_what_the_codec_and_the_simulator_do(run, tmp_path, monkeypatch):
    layer = eie.Layer(300, 200, 0.05, 0.5, 10)
    monkeypatch.setattr(published, "LAYERS", {"small": layer})
    report = command.run(tmp_path / "report", run, pes=8)
    [row] = report["layers"]
    assert row["active"] == 150 and row["outputs"] == 200
    assert row["efficiency"][1] < row["efficiency"][8] <= 1
    kept = row["bits"]["nonzeros"] / 8 / (300 * 200)
    assert kept == pytest.approx(0.05, rel=0.1)
    assert row["bits"]["padding"] / row["bits"]["nonzeros"] == pytest.approx(
        eie.expected_padding(0.05, 25), rel=0.1
    )
    assert row["bits"]["pointers"] == 16 * 8 * 301

    with np.load(run / "weights.npz") as file:
        weights = dict(file)
    first, second = report["trained"]["layers"]
    assert [first["layer"], second["layer"]] == ["layers_0/kernel", "layers_1/kernel"]
    for found in (first, second):
        codes, _ = eie.quantize(weights[found["layer"]].T)
        assert found["bits"] == eie.storage_bits(eie.encode(codes, 8))._asdict()
        assert found["weight_density"] == pytest.approx(np.mean(codes != 0))
    assert first["activation_density"] == 1 > second["activation_density"] > 0
    assert 0 < report["trained"]["accuracy"] <= 1

    written = json.loads((tmp_path / "report" / "report.json").read_text())
    assert written["trained"] == report["trained"]
    html = (tmp_path / "report" / "report.html").read_text()
    assert html.count("data:image/png") == 3 and "layers_1/kernel" in html


def test_accuracy_is_that_of_the_run(run):
    said = json.loads((run / "report.json").read_text())["sparse_accuracy"]
    assert trained.count(run, 2)["accuracy"] == pytest.approx(said)


def test_runs_that_have_no_such_layers_are_refused(run, tmp_path):
    with pytest.raises(ValueError, match=r"holds no finished run; .*experiments.run makes one"):
        trained.count(tmp_path, 4)
    for change, message in (
        ({"model": {"name": "cnn"}}, "of the model 'cnn'; one of 'mlp' would work"),
        ({"data": {"name": "toy", "task": "binary"}}, "task binary, needs classification"),
    ):
        report = json.loads((run / "report.json").read_text())
        report["config"] |= change
        (tmp_path / "report.json").write_text(json.dumps(report))
        with pytest.raises(ValueError, match=message):
            trained.count(tmp_path, 4)


def test_figures_show_every_layer():
    rows = [
        {
            "layer": name,
            "inputs": 8,
            "outputs": 8,
            "efficiency": {1: 0.5, 8: 0.9},
            "padding_by_pes": [0.1] * len(published.ELEMENTS),
            "bits": {"nonzeros": 64, "padding": 8, "pointers": 144, "codebook": 256},
        }
        for name in ("a", "b")
    ]
    lines = figures.balance(rows, (1, 8)).axes[0].lines
    assert [list(line.get_ydata()) for line in lines[:2]] == [[0.5, 0.9]] * 2
    assert len(figures.padding(rows).axes[0].lines) == 2
    bars = figures.storage(rows).axes[0].patches
    assert sum(bar.get_height() for bar in bars) == pytest.approx(2 * (64 + 8 + 144) / 64)
    report = {"layers": [row | {"bits_per_weight": 7.4} for row in rows]}
    assert page.storage(report)[1][-2:] == ["7.40", "23.1%"]


def test_elements_below_one_are_refused(capsys):
    with pytest.raises(SystemExit):
        command.main(["--workdir", "unused", "--pes", "0"])
    assert "at least 1 element" in capsys.readouterr().err
