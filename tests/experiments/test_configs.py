import pathlib

import pytest

from experiments import config as configs
from experiments import run

CONFIGS = sorted(pathlib.Path("experiments/configs").glob("[a-z]*.py"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_loads_and_survives_json(path):
    config = configs.load(str(path))
    assert configs.differences(configs.to_json(config), configs.to_json(config)) == []


def test_overrides_reach_nested_keys():
    config = configs.load("experiments/configs/demo.py", {"seed": 3, "recipe.begin": 7})
    assert (config.seed, config.recipe.begin) == (3, 7)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config.sed=1"], "unknown config key 'sed'; did you mean 'seed'?"),
        (["--config.recipe.beginn=1"], "unknown config key 'recipe.beginn'; did you mean"),
        (["--config.recipe.beginn", "1"], "unknown config key 'recipe.beginn'; did you mean"),
    ],
)
def test_a_typo_on_the_command_line_is_an_error(arguments, message):
    with pytest.raises(SystemExit) as caught:
        run.parse_flags(["run", "--config=experiments/configs/demo.py", *arguments])
    assert message in str(caught.value)


def test_a_missing_config_lists_its_neighbours():
    with pytest.raises(SystemExit) as caught:
        run.parse_flags(["run", "--config", "experiments/configs/digits_rig.py"])
    assert "experiments/configs/digits_rigl.py" in str(caught.value)


def test_a_typo_in_a_config_file_is_an_error():
    config = configs.load("experiments/configs/base.py")
    config.batchsize = 3
    with pytest.raises(ValueError, match="key 'batchsize'; did you mean 'batch_size'"):
        configs.check(config)
    del config.batchsize
    del config.rules
    with pytest.raises(ValueError, match="the config lacks rules"):
        configs.check(config)


def test_counts_are_positive():
    with pytest.raises(ValueError, match=r"config.steps must be at least 1, not 0"):
        configs.load("experiments/configs/base.py", {"steps": 0})


def test_differences_name_keys_and_values():
    old = {"seed": 0, "model": {"name": "mlp", "hidden": [3]}}
    new = {"seed": 0, "model": {"name": "cnn"}}
    assert configs.differences(old, new) == [
        "model.hidden: [3] -> '(absent)'",
        "model.name: 'mlp' -> 'cnn'",
    ]
