import itertools

import pytest

from experiments import search_claim
from experiments.search import run as runs

# Method -> points lost at 50 % of the latency, and minutes.
LOST = {
    "uniform": (2.0, 0.1),
    "sensitivity": (1.5, 1.0),
    "spdy": (0.75, 1.0),
    "netadapt": (1.0, 4.0),
    "amc": (1.25, 20.0),
}


@pytest.fixture
def asked(monkeypatch):
    """Every run that is asked for, by folder; reports are made up, and nothing is trained."""
    seen, trained = {}, []

    def run(config, path):
        assert path not in seen
        seen[path] = config
        points, minutes = LOST[config.method]
        points *= 1 + 0.4 * (config.budget.share == 0.3)
        rows = [{"accuracy": 0.98}, {"accuracy": 0.5}, {"accuracy": 0.98 - points / 100}]
        flops = 57 if config.budget.width else 100 * config.budget.share
        return {
            "rows": rows,
            "flops": {"dense": 100, "found": flops},
            "speed": {
                "speedup": 2.0,
                "predicted": {"found_ms": 1.0, "measured_ms": 0.9, "error": 0.1 + config.seed / 10},
            },
            "search_seconds": 60 * minutes,
        }

    monkeypatch.setattr(runs, "run", run)
    monkeypatch.setattr(
        search_claim.train, "run", lambda config, path, html: trained.append((config.seed, path))
    )
    return seen, trained


def test_every_arm_and_seed_has_a_folder_and_starts_from_its_seeds_dense_model(asked, tmp_path):
    seen, _ = asked
    outcome = search_claim.measure([0, 1], tmp_path)
    assert len(seen) == 2 * len(search_claim.ARMS) == 50
    one = seen[str(tmp_path / "amc_latency_30" / "1")]
    assert (one.seed, one.method, one.budget.of, one.budget.share) == (1, "amc", "latency", 0.3)
    assert one.init_from == str(tmp_path / "dense" / "1")
    assert {config.latency.table for config in seen.values()} == {str(tmp_path / "latency.json")}
    bounds = {row["bound"]: row for row in outcome["bounds"]}

    def verdict(text):
        return bounds[text]["holds"]

    half = "loses at most half the points that uniform loses"
    assert verdict(f"latency 50 %: spdy {half}") is True
    assert verdict(f"latency 50 %: netadapt {half}") is True
    assert verdict(f"latency 50 %: amc {half}") is False
    assert verdict("flops 50 %: spdy is at least as accurate as amc") is True
    assert verdict("flops 50 %: spdy takes a tenth of its time") is True
    # The second seed's prediction is 20 % off.
    row = bounds["predicted latency within 15 % of measured"]
    assert row["found"] == pytest.approx(0.2) and row["holds"] is False
    assert verdict("width 0.75 cuts the FLOPs by 1.75, within 0.1") is True
    best = bounds["the best search is more accurate than width 0.75 at its latency"]
    assert best["found"] == pytest.approx(1.25) and best["holds"] is True
    table = search_claim.as_markdown(outcome)
    assert "| dense | 98.00 % | 98.00 98.00 | - | 100.0 % | - | - | 1.00 | - |" in table
    assert "| amc, flops 30 % | 96.25 % | 96.25 96.25 | 50.00 % | 30.0 % | 1.000 | 0.900 |" in table


def test_the_dense_model_is_trained_once_a_seed(asked, tmp_path, monkeypatch):
    _, trained = asked
    done = set()
    monkeypatch.setattr(search_claim.workdir, "finished", lambda folder: str(folder) in done)
    monkeypatch.setattr(
        search_claim.train,
        "run",
        lambda config, path, html: (trained.append(config.seed), done.add(path)),
    )
    search_claim.measure([0, 1], tmp_path, ["uniform, flops 50 %", "spdy, flops 50 %"])
    assert trained == [0, 1]


def test_bounds_of_arms_that_did_not_run_have_no_verdict(asked, tmp_path):
    outcome = search_claim.measure([0], tmp_path, ["uniform, latency 50 %"])
    ran = [row["bound"] for row in outcome["bounds"] if row["holds"] is not None]
    assert ran == ["predicted latency within 15 % of measured"]
    with pytest.raises(ValueError, match="unknown arm 'amc, flops 60 %'; did you mean"):
        search_claim.measure([0], tmp_path, ["amc, flops 60 %"])


def test_the_estimate_grows_with_seeds_and_arms():
    pairs = itertools.pairwise([search_claim.estimate(n) for n in range(1, 4)])
    assert all(one < two for one, two in pairs)
    assert search_claim.estimate(1, ["uniform, flops 50 %"]) < search_claim.estimate(1)
