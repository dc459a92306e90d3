import pathlib

import pytest

from experiments import config as configs
from experiments.steps import resolve

# Those of language models and of searches have other keys, and tests of their own that load them.
CONFIGS = sorted(
    path
    for path in pathlib.Path("experiments/configs").glob("[a-z]*.py")
    if not path.stem.startswith(("smollm_", "mnist_"))
)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_loads_and_survives_json(path):
    config = configs.load(str(path))
    assert configs.differences(configs.to_json(config), configs.to_json(config)) == []


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_steps_alone_scale_a_config(path):
    """Whatever happens at a step happens at the same part of a run a tenth as long."""

    def laid_out(config):
        found = dict(configs.flatten(config.to_dict()))
        keys = ("recipe.begin", "recipe.end", "recipe.every", "learning_rate.warmup")
        return {key: resolve(key, found[key], config.steps) for key in keys if key in found}

    whole = configs.load(str(path))
    tenth = configs.load(str(path), {"steps": whole.steps // 10})
    assert laid_out(whole)
    for key, steps in laid_out(whole).items():
        assert steps >= 10, key
        assert laid_out(tenth)[key] == pytest.approx(steps / 10, abs=0.51), key


def test_explicit_steps_win():
    config = configs.load("experiments/configs/demo.py", {"steps": 240, "recipe.begin": 100})
    assert resolve("recipe.begin", config.recipe.begin, config.steps) == 100
    assert resolve("recipe.end", config.recipe.end, config.steps) == 180


def test_an_option_that_the_file_leaves_out():
    config = configs.load("experiments/configs/demo.py", {"recipe.ramp": "linear"})
    assert config.recipe.ramp == "linear"
    with pytest.raises(ValueError, match=r"key 'recipe.rampp'; did you mean 'recipe.ramp'"):
        configs.load("experiments/configs/demo.py", {"recipe.rampp": "linear"})


def test_a_value_of_another_type():
    with pytest.raises(ValueError, match=r"config.steps is 2400; 'many' is of another type"):
        configs.load("experiments/configs/demo.py", {"steps": "many"})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1", r"config.py: no function get_config\(\)"),
        ("def get_config(", r"config.py, line 1: SyntaxError: '\(' was never closed"),
        ("def get_config():\n    return 1 / 0", r"config.py, line 2: ZeroDivisionError: division"),
    ],
)
def test_a_config_file_that_fails_is_named(text, message, tmp_path):
    (tmp_path / "config.py").write_text(text)
    with pytest.raises(ValueError, match=message):
        configs.load(str(tmp_path / "config.py"))


def test_a_missing_config_lists_its_neighbours():
    with pytest.raises(ValueError, match=r"experiments/configs/digits_rigl.py"):
        configs.load("experiments/configs/digits_rig.py")
    with pytest.raises(ValueError, match=r"did you mean 'experiments/configs/demo.py'"):
        configs.load("experiments/configs")


def test_overrides_reach_nested_keys():
    config = configs.load("experiments/configs/demo.py", {"seed": 3, "recipe.begin": 7})
    assert (config.seed, config.recipe.begin) == (3, 7)


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
