import pytest

from experiments import steps


@pytest.mark.parametrize(
    ("value", "expected"), [(0, 0), (0.25, 100), (0.0001, 0), (1, 1), (1.0, 1), (250, 250)]
)
def test_shares_and_counts(value, expected):
    assert steps.resolve("recipe.begin", value, 400) == expected


def test_an_interval_is_at_least_one_step():
    assert steps.interval("recipe.every", 1 / 240, 24) == 1
    assert steps.interval("recipe.every", 1 / 240, 2400) == 10


@pytest.mark.parametrize("value", [-1, -0.1, 1.5])
def test_neither_a_share_nor_a_count(value):
    with pytest.raises(ValueError, match=f"recipe.begin = {value} is neither"):
        steps.resolve("recipe.begin", value, 400)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (400, "recipe.end = 400 is outside the run's 400.*or config.steps = 401"),
        (0.999, r"400 \(0.999 of the run\).*or config.steps = 501"),
    ],
)
def test_what_the_run_does_not_reach(value, message):
    with pytest.raises(ValueError, match=message):
        steps.inside("recipe.end", value, 400)
    assert steps.inside("recipe.end", 399, 400) == 399


@pytest.mark.parametrize("value", [0.3, 0.5, 7 / 8, 0.95, 0.999, 17])
def test_the_length_that_is_named_is_the_least_that_reaches_the_step(value):
    short = next(n for n in range(1, 600) if steps.resolve("recipe.end", value, n) < n)
    assert steps.inside("recipe.end", value, short) < short
    if short > 1:
        with pytest.raises(ValueError, match=f"or config.steps = {short}$"):
            steps.inside("recipe.end", value, short - 1)


def test_no_interval_is_zero():
    with pytest.raises(ValueError, match=r"recipe.every = 0 never ends; recipe.every = 1 is every"):
        steps.interval("recipe.every", 0, 400)
