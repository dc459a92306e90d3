import pytest

from experiments.registry import Registry, near_misses


@pytest.fixture
def fruit():
    registry = Registry("fruit", given=1)

    @registry.register("apple")
    def apple(basket, size: int, colour: str = "red"):
        return basket, size, colour

    return registry


def test_options_reach_the_factory(fruit):
    assert fruit.create("apple", "b", size=3) == ("b", 3, "red")


def test_what_the_program_gives_is_no_option(fruit):
    assert [*fruit.options("apple")] == ["size", "colour"]
    assert [*fruit.options("pear")] == []


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("aple", {"size": 1}, r"unknown fruit 'aple'; did you mean 'apple'\?"),
        ("zzz", {"size": 1}, "unknown fruit 'zzz'; known: apple"),
        ("apple", {"size": 1, "color": 2}, r"'apple' has no option 'color'; did you mean 'colour'"),
        ("apple", {"basket": 1, "size": 1}, "has no option 'basket'"),
        ("apple", {}, "fruit 'apple' needs the option size"),
    ],
)
def test_errors_name_what_was_meant(fruit, name, options, message):
    with pytest.raises(ValueError, match=message):
        fruit.create(name, "b", **options)


def test_a_name_is_taken_once(fruit):
    with pytest.raises(ValueError, match="fruit 'apple' is registered twice"):
        fruit.register("apple")(lambda: None)


def test_near_misses_without_any_name():
    assert near_misses("a", []) == "; known: none"


def test_a_near_miss_is_said_once():
    assert near_misses("sed", ["seed", "seed"]) == "; did you mean 'seed'?"
