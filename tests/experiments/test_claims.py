import pytest

from experiments import claims, train
from experiments import config as configs


@pytest.fixture
def accuracies(monkeypatch):
    """Reports instead of training, from accuracies by (recipe, seed)."""
    made = {}

    def run(config, path, html):
        assert not html
        accuracy = made[config.recipe.name, config.seed]
        return {
            "steps": config.steps,
            "config": configs.to_json(config),
            "sparsity": 0.9,
            "dense_accuracy": None,
            "sparse_accuracy": accuracy,
            "test_examples": 10,
        }

    monkeypatch.setattr(train, "run", run)
    return made


@pytest.mark.parametrize(("sparse", "holds"), [(0.9, False), (0.97, True)])
def test_a_claim_is_a_difference_of_means(accuracies, tmp_path, sparse, holds):
    for seed in (0, 1):
        accuracies["dense", seed] = 0.98 + 0.01 * seed
        accuracies["magnitude", seed] = sparse + 0.02 * seed
    outcome = claims.measure("blocks", [0, 1], tmp_path)
    assert outcome["difference_points"] == pytest.approx(100 * (sparse + 0.01 - 0.985))
    assert outcome["holds"] is holds
    table = claims.as_markdown(outcome)
    assert ("it holds" in table) is holds and "| dense | 98.50 % | 98.00 99.00 | - |" in table


def test_an_unknown_claim(tmp_path):
    with pytest.raises(ValueError, match="unknown claim 'block'; did you mean 'blocks'"):
        claims.measure("block", [0], tmp_path)


@pytest.mark.parametrize("name", claims.CLAIMS)
def test_the_arms_of_a_claim_get_the_same_steps(name):
    claim = claims.CLAIMS[name]
    loaded = {
        label: configs.load(f"experiments/configs/{arm.config}.py", arm.overrides)
        for label, arm in claim.arms.items()
    }
    assert len({(made.steps, made.recipe.begin) for made in loaded.values()}) == 1
    assert len({(str(made.model), str(made.optimizer)) for made in loaded.values()}) == 1
    better, worse = loaded[claim.better], loaded[claim.worse]
    assert better.learning_rate.to_dict() == worse.learning_rate.to_dict()
    assert better.sparsity == worse.sparsity and better.rules == worse.rules
