"""The table of rules, one for each primitive."""

from collections.abc import Callable, Sequence
from typing import Any

from jaxsparse.graph.values import Value

Rule = Callable[..., Sequence[Value]]

RULES: dict[str, Rule] = {}


def rule(names: str) -> Callable[[Rule], Rule]:
    """Enters a function into RULES under some names."""

    def enter(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(names.split(), function))
        return function

    return enter


def sizes(variable: Any) -> tuple[int, ...]:
    """Shape of a variable of a jaxpr."""
    return tuple(variable.aval.shape)


def drop(value: Value, axes: Sequence[int]) -> Value:
    """The value without some of its axes."""
    kept = [i for i in range(len(value.axes)) if i not in axes]
    return value.pick([value.axes[i] for i in kept], [[i] for i in kept])


def exchange(value: Value, i: int, term: int) -> Value:
    """The value with another term for one axis."""
    axes = [*value.axes[:i], term, *value.axes[i + 1 :]]
    return value.pick(axes, [[k] for k in range(len(axes))])
