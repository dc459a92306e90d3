"""The command line in real processes."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from experiments.metrics import read

pytestmark = pytest.mark.slow


def command(name, folder, *arguments):
    config = f"experiments/configs/{name}.py"
    base = [sys.executable, "-m", "experiments.run", "--config", config, "--workdir", str(folder)]
    # One device, as users have it; the other tests see eight.
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    return [*base, *arguments], {"env": environment, "stderr": subprocess.PIPE, "text": True}


def run(*arguments):
    line, options = command(*arguments)
    result = subprocess.run(line, stdout=subprocess.PIPE, check=False, **options)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_a_killed_process_goes_on_to_the_same_weights(tmp_path):
    shape = ["--config.steps=300", "--config.recipe.begin=80", "--config.recipe.end=200"]
    arguments = [*shape, "--config.checkpoint_every=30", "--config.log_every=10"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run("digits_block", whole, *arguments)

    line, options = command("digits_block", killed, *arguments)
    process = subprocess.Popen(line, stdout=subprocess.DEVNULL, **options)
    deadline = time.monotonic() + 300
    try:
        # In the middle of pruning, with at least one checkpoint behind it.
        while (read(killed / "metrics.jsonl") or [{"step": 0}])[-1]["step"] < 120:
            assert process.poll() is None, process.stderr.read()
            assert time.monotonic() < deadline, "no progress"
            time.sleep(0.01)
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert not (killed / "report.json").exists()

    run("digits_block", killed, *arguments)
    for name in ("weights.npz", "masks.npz"):
        with np.load(whole / name) as expected, np.load(killed / name) as found:
            assert set(found) == set(expected)
            for path in expected:
                np.testing.assert_array_equal(found[path], expected[path], strict=True)
    steps = [record["step"] for record in read(killed / "metrics.jsonl")]
    assert steps == [record["step"] for record in read(whole / "metrics.jsonl")]


def test_the_demo(tmp_path):
    printed = run("demo", tmp_path / "demo")
    report = json.loads((tmp_path / "demo" / "report.json").read_text())
    measured = {
        name: report[name]
        for name in (
            *("dense_accuracy", "sparse_accuracy", "sparsity"),
            *("dense_bytes", "sparse_bytes", "seconds"),
            *("dense_ms", "sparse_ms", "speedup", "max_abs_difference"),
        )
    }
    assert all(isinstance(value, int | float) for value in measured.values())
    assert measured["sparsity"] >= 0.9
    assert measured["dense_accuracy"] > 0.97
    assert measured["sparse_accuracy"] > measured["dense_accuracy"] - 0.02
    assert measured["sparse_bytes"] < measured["dense_bytes"] / 4
    assert measured["seconds"] < 300
    for word in ("held-out accuracy", "parameters", "bytes", "sparsity", "seconds"):
        assert word in printed


def test_a_mistake_is_one_line_and_a_failure(tmp_path):
    line, options = command("demo", tmp_path / "run", "--config.recipe.name=magnitud")
    result = subprocess.run(line, stdout=subprocess.PIPE, check=False, **options)
    assert result.returncode == 1
    expected = "error: unknown recipe 'magnitud'; did you mean 'magnitude'?"
    assert result.stderr.strip().splitlines()[-1] == expected
