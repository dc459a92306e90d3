import pytest

from experiments import oneshot_claim
from experiments.oneshot import run as runs

LIMITS = ("reviews <= 1.15", "handbook <= 1.32")


@pytest.fixture
def asked(monkeypatch):
    """Every run that is asked for, by folder; reports are made up, and nothing is pruned."""
    seen = {}

    def run(config, path):
        assert path not in seen
        seen[path] = config
        dense = {"stage": "dense", "sparsity": 0.0, "peak_memory_bytes": 1}
        rows = [dense | {"perplexity": {"reviews": 57.0, "handbook": 43.0}}]
        for number in range(1 + len(config.stages)):
            found = {"reviews": 68.0 - 2 * number + config.seed, "handbook": 55.0 + number}
            if config.pattern == "2:4":
                found["handbook"] = None
            row = {"stage": f"stage {number}", "layer_loss": 0.01, "prune_seconds": 60.0}
            row["layer_loss_by"] = "products" if config.stages else "squares"
            rows.append(dense | row | {"sparsity": 0.5, "perplexity": found})
        return {"rows": rows}

    monkeypatch.setattr(runs, "run", run)
    return seen


def test_every_arm_and_seed_has_a_folder(asked, tmp_path):
    outcome = oneshot_claim.measure([0, 1], tmp_path)
    assert len(asked) == 2 * len(oneshot_claim.ARMS) == 44
    alone = asked[str(tmp_path / "alps_unstructured_handbook_alone" / "1")]
    assert (alone.seed, tuple(alone.calibration.corpora)) == (1, ("handbook",))
    bounds = {row["bound"]: row for row in outcome["bounds"]}
    reviews, handbook = (bounds[f"unstructured, {c} times dense"] for c in LIMITS)
    # The third stage gains 6 / 57 and loses 3 / 43 against the criterion alone.
    assert reviews["row"] == handbook["row"] == "wanda unstructured, all stages: stage 3"
    assert reviews["found"] == pytest.approx(62.5 / 57) and reviews["holds"] is True
    assert handbook["found"] == pytest.approx(58 / 43) and handbook["holds"] is False
    assert bounds["2:4, handbook <= 2.05 times dense"]["holds"] is None
    table = oneshot_claim.as_markdown(outcome)
    assert (
        "| wanda 2:4, all stages | stage 2 | 64.5 (64.0 65.0) | not finite not finite | 50.00% |"
        in table
    )
    assert table.count("| 0.0100 by norms | 1.0 |") == sum(
        not arm.stages for arm in oneshot_claim.ARMS.values()
    )
    assert "| wanda 2:4 | dense | 57.0 (57.0 57.0) | 43.0 (43.0 43.0) | 0.00% | - | - |" in table


def test_what_is_calibrated_on_one_corpus_alone_meets_no_bound(asked, tmp_path):
    outcome = oneshot_claim.measure([0], tmp_path, ["alps unstructured, reviews alone"])
    assert [row["holds"] for row in outcome["bounds"]] == [None] * 4


def test_an_unknown_arm_is_named_before_any_run(asked, tmp_path):
    with pytest.raises(ValueError, match=r"unknown arm 'wanda 2:3'; did you mean 'wanda 2:4'"):
        oneshot_claim.measure([0], tmp_path, ["alps 2:4", "wanda 2:3"])
    assert not asked
