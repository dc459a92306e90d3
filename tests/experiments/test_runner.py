import io
import logging
import re
import sys

import numpy as np
import pytest
import toys

from experiments import data, summary, train, workdir
from experiments.metrics import MetricWriter, read


def weights(folder):
    with np.load(folder / "weights.npz") as archive:
        return dict(archive)


def steps(folder):
    return [record["step"] for record in read(folder / "metrics.jsonl")]


@pytest.fixture(scope="module")
def pruning():
    options = {"recipe__name": "magnitude", "recipe__begin": 6, "recipe__end": 16}
    return toys.config(**options)


@pytest.fixture(scope="module")
def said():
    """What the finished run logs where no terminal draws its bar."""
    return io.StringIO()


@pytest.fixture(scope="module")
def finished(pruning, said, tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    log, handler = logging.getLogger("experiments"), logging.StreamHandler(said)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stderr", io.StringIO())
        before = log.level
        log.setLevel(logging.INFO)
        log.addHandler(handler)
        report = train.run(pruning, str(folder))
        log.removeHandler(handler)
        log.setLevel(before)
    return folder, report


def test_a_run_leaves_its_files(finished):
    folder, _ = finished
    names = {file.name for file in folder.iterdir()}
    assert names == {
        *("config.json", "metrics.jsonl", "tensorboard", "checkpoints"),
        *("weights.npz", "masks.npz", "report.html", "report.json"),
    }
    assert steps(folder) == [4, 6, 8, 12, 16, 20, 24]
    assert any((folder / "tensorboard").iterdir())


def test_the_report_counts_what_is_stored(finished):
    folder, report = finished
    kernel = weights(folder)["layers_0/kernel"]
    with np.load(folder / "masks.npz") as masks:
        assert list(masks) == ["layers_0/kernel"]
        np.testing.assert_array_equal(kernel != 0, masks["layers_0/kernel"])
    assert report["sparsity"] == 1 - (kernel != 0).mean() == 0.75
    assert report["sparse_parameters"] == report["dense_parameters"] - 16 * 32 * 3 // 4
    assert report["sparse_bytes"] < report["dense_bytes"] == 4 * report["dense_parameters"]
    records = {record["step"]: record for record in read(folder / "metrics.jsonl")}
    assert report["dense_accuracy"] == records[6]["test_accuracy"]
    assert report["sparse_accuracy"] == records[24]["test_accuracy"]
    assert records[6]["sparsity"] == 0 and records[24]["sparsity"] == 0.75
    assert report["seconds"] == records[24]["seconds"] > records[4]["seconds"] > 0


def test_the_packed_model_computes_the_same(finished):
    _, report = finished
    assert report["max_abs_difference"] < 1e-5
    assert report["densified"] == []
    assert report["latency_examples"] == report["test_examples"]
    assert report["dense_ms"] > 0 and report["sparse_ms"] > 0 and report["speedup"] > 0
    assert "forward pass of 32 examples, ms" in summary.as_text(summary.rows(report))


def test_the_page_is_self_contained(finished):
    folder, report = finished
    page = (folder / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 5
    assert not re.search(r"(src|href)=\"(?!data:)", page)
    assert "layers_0/kernel" in page and "sparsity of the pruned leaves" in page
    # Every figure is explained, and the machine is named.
    assert page.count("<figcaption>") == 1 + page.count("<img ")
    assert "Training is dense throughout" in page and "one process" in page
    for version in report["environment"].values():
        assert version in page


def test_the_spread_of_the_latency(finished):
    _, report = finished
    for side in ("dense", "sparse"):
        percentiles = report["latency"][f"{side}_percentiles_ms"]
        assert percentiles == sorted(percentiles) and percentiles[2] == report[f"{side}_ms"]
    assert report["latency"]["rounds"] >= 15


def test_what_is_said_of_a_run_is_what_was_measured(finished):
    _, report = finished
    slower = report | {"speedup": 0.5, "unmasked_step_ms": 2.0, "masked_step_ms": 1.0}
    said = " ".join(summary.notes(slower))
    assert "0.50 times as fast as dense" in said
    assert "2.00 ms before the first masks and 1.00 ms after, which is no measure" in said
    assert "after 6 steps" in said and "for 18 more" in said
    sparse_from_the_start = slower | {"dense_until": 0, "unmasked_step_ms": None}
    assert "before" not in " ".join(summary.notes(sparse_from_the_start))


def test_the_table(finished):
    _, report = finished
    lines = summary.as_text(summary.rows(report)).splitlines()
    assert lines[0].split() == ["dense", "sparse"]
    assert "75.00%" in next(line for line in lines if "pruned leaves" in line)
    # Without a dense phase nothing dense was measured.
    del report["dense_accuracy"]
    assert summary.rows(report)[1][1] == "-"


class Killed(BaseException):
    pass


def test_an_interrupted_run_ends_bit_identical(finished, pruning, tmp_path, monkeypatch):
    reference, _ = finished
    original = data.Batches.__call__

    def fatal(self, step):
        if step == 14:
            raise Killed
        return original(self, step)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(data.Batches, "__call__", fatal)
        train.run(pruning, str(tmp_path))
    # What a kill in the middle of a line leaves behind.
    with (tmp_path / "metrics.jsonl").open("a") as lines:
        lines.write('{"step": 14, "lo')
    assert not workdir.finished(tmp_path)
    train.run(pruning, str(tmp_path), html=False)
    assert steps(tmp_path) == steps(reference)
    expected, found = weights(reference), weights(tmp_path)
    for path in expected:
        np.testing.assert_array_equal(found[path], expected[path], strict=True)
    for one, two in zip(
        read(tmp_path / "metrics.jsonl"), read(reference / "metrics.jsonl"), strict=True
    ):
        times = {"seconds", "step_ms"}
        assert {k: one[k] for k in one.keys() - times} == {k: two[k] for k in two.keys() - times}


def test_a_line_stands_before_every_long_phase(finished, said):
    lines = iter(said.getvalue().splitlines())
    for begin in ("preparing data", "compiling, then steps 1 to 24", "step 24 of 24", "measuring"):
        assert any(line.startswith(begin) for line in lines), (begin, said.getvalue())


def test_a_finished_run_is_not_run_again(finished, pruning, monkeypatch, caplog):
    folder, report = finished
    monkeypatch.setattr(train, "_fit", None)
    with caplog.at_level("INFO", logger="experiments"):
        assert train.run(pruning, str(folder))["sparsity"] == report["sparsity"]
    assert "is finished; --overwrite starts it again" in caplog.text


def test_another_config_in_the_folder_is_an_error(finished, pruning):
    folder, _ = finished
    other = pruning.copy_and_resolve_references()
    other.seed, other.recipe.end = 1, 17
    with pytest.raises(ValueError, match=r"(?s)another config.*recipe.end: 16 -> 17.*seed: 0 -> 1"):
        train.run(other, str(folder))


def test_overwrite_deletes_only_runs(tmp_path):
    config = {"seed": 0}
    folder = workdir.open_workdir(tmp_path / "run", config, overwrite=True)
    (folder / "metrics.jsonl").write_text("old")
    workdir.open_workdir(folder, {"seed": 1}, overwrite=True)
    assert [file.name for file in folder.iterdir()] == ["config.json"]
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match="holds files but no run"):
        workdir.open_workdir(tmp_path, config, overwrite=True)
    assert (tmp_path / "thesis.tex").exists()


def test_metrics_go_on_after_a_kill(tmp_path):
    writer = MetricWriter(tmp_path, 0)
    for step in (10, 20, 30):
        writer.write(step, loss=1.0 / step)
    writer.close()
    writer = MetricWriter(tmp_path, 20)
    assert [record["step"] for record in writer.history] == [10, 20]
    writer.write(30, loss=5.0)
    writer.close()
    assert read(tmp_path / "metrics.jsonl")[-1] == {"step": 30, "loss": 5.0}
    assert steps(tmp_path) == [10, 20, 30]


@pytest.mark.parametrize("task", ["binary", "regression"])
def test_other_tasks_lead_with_their_metric(task, tmp_path):
    config = toys.config(data__task=task, steps=8, recipe__begin=4)
    report = train.run(config, str(tmp_path))
    metric = {"binary": "auc", "regression": "rmse"}[task]
    assert report["headline"] == metric and report["sparsity"] == 0
    assert {f"dense_{metric}", f"sparse_{metric}"} <= set(report)
