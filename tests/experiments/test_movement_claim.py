import pytest

from experiments import movement_claim, train

LEFT = {"light": 0.4, "light_blocks": 0.35, "strong": 0.21, "strong_blocks": 0.22}


@pytest.fixture
def runs(monkeypatch):
    """Every run that is asked for, by folder; reports are made up, and none is trained."""
    seen = {}

    def run(config, path, **options):
        assert path not in seen
        seen[path] = config
        arm = path.split("/")[-2]
        found = {"seconds": 1.0, "steps": config.steps, "test_examples": 10}
        found |= {"sparse_auc": 0.9, "sparse_f1": 0.8, "sparse_accuracy": 0.85}
        if arm == "dense":
            return found
        left = LEFT.get(arm, 0.2)
        if arm == "strong_magnitude":
            found["sparse_auc"] = 0.88
        sizes = {"smallest": left * 100, "dense": 100}
        keys = ("linear_bytes", "model_bytes", "linear_bytes_16", "model_bytes_16")
        structure = [{"group": "g", "kept": [0, 1]}]
        return found | dict.fromkeys(keys, sizes) | {"linear_left": left, "structure": structure}

    def served(models, inputs):
        rows = [
            {
                "runtime": runtime,
                "batch": batch,
                "model": model,
                "ms": 1.0,
                "speedup": 1.0 if model == "dense" else 6.0 if "packed" in model else 2.0 + batch,
                "cpu_speedup": 1.0,
            }
            for runtime in ("JAX", "ONNX Runtime")
            for batch in (1, 32)
            for model in models
            if runtime == "JAX" or "packed" not in model
        ]
        return {"rows": rows, "missing": ["OpenVINO"]}

    def models(folders):
        names = dict.fromkeys(folders) | dict.fromkeys(
            f"{a}, packed" for a in folders if "blocks" in a
        )
        return names

    monkeypatch.setattr(movement_claim, "_models", models)
    monkeypatch.setattr(movement_claim.serving, "measure", served)
    monkeypatch.setattr(train, "run", run)
    return seen


def test_arms_of_a_seed_share_its_dense_run(runs, tmp_path):
    outcome = movement_claim.measure([0, 1], tmp_path)
    assert len(runs) == 2 * (1 + 6)
    for path, config in runs.items():
        arm, seed = path.split("/")[-2:]
        dense = "" if arm == "dense" else str(tmp_path / "dense" / seed)
        assert config.init_from == config.distillation.teacher == dense
        assert config.seed == int(seed)
    held = {row["bound"]: row["holds"] for row in outcome["bounds"]}
    assert held["light: linear_left <= 0.4"] and held["strong_blocks: linear_left <= 0.22"]
    assert held["light: JAX >= 2.2"] and held["strong_blocks: JAX >= 5.5"]
    assert not held["strong: JAX >= 3.2"] and held["strong: OpenVINO >= 2.6"] is None
    rival = outcome["rivals"][1]
    assert rival["auc_points"] == pytest.approx(2.0) and rival["linear_left"] == [0.22, 0.2]
    table = movement_claim.as_markdown(outcome)
    assert "| strong_blocks: JAX >= 5.5 | 6.000 | holds |" in table
    assert "| light: OpenVINO >= 1.8 | - | not installed |" in table
    assert "strong_blocks against strong_magnitude (22.0% and 20.0% left): AUC +2.00" in table
    assert "| dense | 90.00 (90.00 90.00) |" in table


def test_some_arms(runs, tmp_path):
    outcome = movement_claim.measure([3], tmp_path, arms=("strong",))
    assert sorted(path.split("/")[-2] for path in runs) == ["dense", "strong"]
    assert outcome["rivals"] == [] and {b["bound"].split(":")[0] for b in outcome["bounds"]} == {
        "strong"
    }


@pytest.mark.parametrize(("found", "holds"), [(2.2, True), (2.19, False)])
def test_a_bound(found, holds):
    assert movement_claim.Bound("light", "JAX", True, 2.2).holds(found) is holds
    assert movement_claim.Bound("light", "linear_left", False, 2.2).holds(4.4 - found) is holds
