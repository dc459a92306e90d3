"""A slice of the fuzzing of `prune`; `python -m tests.fuzz.transforms` is the whole of it."""

import pytest

from tests.fuzz import transforms

DRAWN = [transforms.draw(0, number) for number in range(500)]


def test_every_choice_is_drawn():
    for field, choices in {
        "pattern": transforms.PATTERNS,
        "score": transforms.SCORES,
        "regrowth": transforms.REGROWTHS,
        "distribution": transforms.DISTRIBUTIONS,
        "wrapper": [*transforms.EXACT, "chain"],
        "dtype": transforms.DTYPES,
        "mesh": ["one", "auto", "explicit"],
        "threshold": [True, False],
    }.items():
        assert {getattr(config, field) for config in DRAWN} == set(choices), field


@pytest.mark.parametrize(
    "number", [0, *(pytest.param(number, marks=pytest.mark.slow) for number in range(1, 6))]
)
def test_random_runs_keep_every_promise(number):
    transforms.check(transforms.draw(1, number))


@pytest.mark.slow
@pytest.mark.parametrize("seed,number", [(5, 6)])
def test_what_once_failed(seed, number):
    # A total of eight scores that all but tied with another, rounded as its shard was cut.
    transforms.check(transforms.draw(seed, number))


def test_a_broken_promise_prints_how_to_repeat_it(monkeypatch, capsys):
    def broken(config):
        assert config.seed < 0, "no such seed"

    monkeypatch.setattr(transforms, "check", broken)
    assert transforms.main(["--configs", "2", "--seed", "7", "--first", "3"]) == 2
    printed = capsys.readouterr().out
    assert "python -m tests.fuzz.transforms --seed 7 --first 4 --configs 1" in printed
    assert "no such seed" in printed and "2 configurations, seed 7: 2 failed" in printed
