"""The claim about INT8's accuracy, on ratings that are made up."""

import sys

import numpy as np
import pytest

from experiments import int8_claim, sweep
from experiments.data import DATASETS, Dataset, Split


@DATASETS.register("toy_ratings")
def toy_ratings(path: str = "", label: str = "liked") -> Dataset:
    """Six columns of ids, of which the first two decide, with a dense feature."""
    del path, label
    rng = np.random.default_rng(0)
    sizes = [5, 7, 2, 2, 2, 2]
    ids = np.stack([rng.integers(0, size, 240) for size in sizes], axis=1).astype(np.int32)
    dense = rng.normal(size=(240, 4)).astype(np.float32)
    genres = rng.integers(0, 2, size=(240, 3)).astype(np.float32)
    user, film = rng.normal(size=5), rng.normal(size=7)
    labels = (user[ids[:, 0]] + film[ids[:, 1]] + dense[:, 0] > 0).astype(np.float32)
    inputs = {"ids": ids, "genres": genres, "dense": dense}
    parts = [
        Split({name: array[rows] for name, array in inputs.items()}, labels[rows])
        for rows in (slice(0, 160), slice(160, 240))
    ]
    return Dataset("binary", *parts, 1, source="toy", sizes={"ids": sizes, "genres": 3})


TINY = {
    "data.name": "toy_ratings",
    "steps": 30,
    "batch_size": 32,
    "model.width": 16,
    "model.bottom": (16,),
    "model.top": (64, 64),
    "model.dropout": 0.0,
    "learning_rate.peak": 1e-2,
    "eval_every": 10,
    "log_every": 10,
    "checkpoint_every": 15,
}


@pytest.mark.slow
def test_four_models_of_a_seed_are_compared(tmp_path):
    outcome = int8_claim.measure([0], tmp_path, TINY)
    assert {name: len(found) for name, found in outcome["auc"].items()} == dict.fromkeys(
        int8_claim.MODELS, 1
    )
    assert outcome["sparsity"] == [pytest.approx(0.85, abs=0.05)] and outcome["steps"] == 30
    for name in ("dense", "sparse"):
        one, two = (outcome["auc"][f"{kind} {name}"][0] for kind in ("f32", "INT8"))
        assert one > 0.6 and two == pytest.approx(one, abs=0.05)
        assert 0 <= outcome["saturated"][f"INT8 {name}"][0] < 0.1
    assert outcome["ratio"]["f32 dense"] == [1.0, None]
    before = outcome["auc"]
    assert int8_claim.measure([0], tmp_path, TINY)["auc"] == before  # read, not trained


def outcome(sparse):
    auc = {name: [0.78, 0.79] for name in int8_claim.MODELS} | {"INT8 sparse": [sparse, 0.79]}
    return {
        "seeds": [0, 1],
        "test_examples": 10,
        "steps": 1500,
        "sparsity": [0.85],
        "auc": auc,
        "saturated": {"INT8 dense": [0.0], "INT8 sparse": [0.001]},
        "ratio": {name: [0.998, 0.001] for name in auc},
        "least": 0.998,
        "holds": sparse > 0.77,
        "command": "command",
        "environment": {"jax": "1"},
    }


@pytest.mark.parametrize(("sparse", "verdict"), [(0.78, "it holds"), (0.7, "it does not hold")])
def test_the_table_says_what_follows(sparse, verdict, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(int8_claim, "measure", lambda seeds, folder: outcome(sparse))
    monkeypatch.setattr(
        sys, "argv", ["sweep", "--claim", "int8", "--results", str(tmp_path), "--seeds", "2"]
    )
    sweep.main()
    text = capsys.readouterr().out
    assert verdict in text and "| f32 dense | 0.7850 | 0.7800 0.7900 | 1 | - |" in text
    assert "| 99.80% ± 0.10% | 0.10% |" in text
    assert (tmp_path / "int8.json").exists() and (tmp_path / "int8.md").read_text().strip() in text
