import doctest
import subprocess
import sys

import pytest

from experiments import command_line, run, steps

DEMO = ["--config=experiments/configs/demo.py", "--workdir", "runs/x"]


def parse(*arguments):
    return command_line.parse([*DEMO, *arguments])


def test_overrides():
    options = parse("--config.seed=3", "--config.recipe.begin", "1/4", "--config.model.hidden=32")
    assert (options.config.seed, options.config.recipe.begin) == (3, 0.25)
    assert options.config.model.hidden == (32,)
    assert (options.workdir, options.overwrite) == ("runs/x", False)
    assert parse("--overwrite").overwrite


def test_a_name_decides_which_options_there_are():
    options = parse("--config.model.widths=(8,16)", "--config.model.name=cnn")
    assert options.config.model.name == "cnn" and options.config.model.widths == (8, 16)


def test_another_name_leaves_out_options_of_the_one_before(caplog):
    recipe = parse("--config.recipe.name=one_shot").config.recipe
    assert recipe.to_dict() == {"name": "one_shot", "begin": 1 / 3}
    assert "one_shot has none of them: recipe.end, recipe.every, recipe.form" in caplog.text
    options = parse("--config.recipe.name=nm", "--config.recipe.every=5", "--config.data.name=npz")
    assert options.config.recipe.to_dict() == {
        "name": "nm",
        "begin": 1 / 3,
        "end": 0.75,
        "every": 5,
    }
    assert options.config.data.to_dict() == {"name": "npz", "path": "", "validation": 0.0}
    with pytest.raises(ValueError, match=r"unknown config key 'recipe.form'"):
        parse("--config.recipe.name=one_shot", "--config.recipe.form=chain")
    assert parse("--config.recipe.name=nonsense").config.recipe.end == 0.75  # refused later on


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--config.sed=1", "unknown config key 'sed'; did you mean 'seed'?"),
        ("--config.recipe.beginn=1", "unknown config key 'recipe.beginn'; did you mean"),
        ("--config.optimizer.learning_rate=1", "unknown config key 'optimizer.learning_rate'"),
        ("--config.recipe.setup=1", "unknown config key 'recipe.setup'"),
        ("--config.recipe=1", "config.recipe is a group of keys: recipe.begin, recipe.end"),
        ("--config.steps=many", "config.steps = 'many' does not read as a whole number such as"),
        ("--config.sparsity=much", "'much' does not read as a number such as 0.9"),
        ("--config.sparsity=1/0", "'1/0' does not read as a number"),
        ("--config.model.hidden=(3", r"'\(3' does not read as a tuple such as \(512, 256\)"),
        ("--config.learning_rate.restart=maybe", "does not read as true or false, such as True"),
        ("--config.steps=0", "config.steps must be at least 1, not 0"),
        ("--config.seed=-1", "config.seed must be at least 0, not -1"),
        ("--config.seed", "--config.seed needs a value"),
        ("--sparsity=0.5", "unexpected argument '--sparsity=0.5'"),
        ("more", "unexpected argument 'more'"),
    ],
)
def test_a_mistake_says_the_cure(argument, message):
    with pytest.raises(ValueError, match=message):
        parse(argument)


def test_what_is_missing():
    with pytest.raises(ValueError, match="required: --config, --workdir; --help"):
        command_line.parse([])


def test_a_mistake_ends_the_program_with_one_line():
    with pytest.raises(SystemExit, match=r"^error: unknown config key 'sed'[^\n]*$"):
        run.main([*DEMO, "--config.sed=1"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "late"),
    [
        ("jaxsparse", ["orbax.checkpoint"]),
        ("experiments.run", ["pyarrow", "igraph", "sklearn", "matplotlib", "orbax.checkpoint"]),
    ],
)
def test_what_takes_long_is_imported_late(module, late):
    program = f"import sys, {module}; print([m for m in {late} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.stdout.strip(), done.stderr) == ("[]", "")


@pytest.mark.parametrize("module", [command_line, run, steps], ids=lambda module: module.__name__)
def test_examples(module):
    found = doctest.testmod(module)
    assert found.attempted and not found.failed
