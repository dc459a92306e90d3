"""The rules of primitives: one decorator and one table for each thing that is asked of them.

A primitive has its rules at one place, a module of `rules`:

- `channels`: called as rule(graph, equation, *axes), with the terms of the axes of every operand.
  It unifies and pins them, and returns the terms of every result. The promise: if all free atoms
  are permuted, in the operands as in the results, the primitive still maps the ones to the
  others. A primitive without a rule pins all that it touches.
- `constants`: called as rule(walk, equation, *known), with `Constants` of every operand. It notes
  what of a summed axis is needed, and returns the Constants of every result. Without a rule
  nothing is known of them.
- `smaller`: called as rule(rewriter, equation, *operands), with arrays that have lost channels. It
  returns the result, or a list of several. Without a rule the primitive is bound as it was: only
  those need one that carry sizes among their parameters.
"""

from collections.abc import Callable, Sequence
from typing import Any

from jaxsparse.graph.analysis.constants import Constants
from jaxsparse.jaxprs import table

CHANNELS: dict[str, Callable[..., Sequence[Sequence[int]]]] = {}
CONSTANTS: dict[str, Callable[..., Sequence[Constants]]] = {}
SMALLER: dict[str, Callable[..., Any]] = {}

channels, constants, smaller = table(CHANNELS), table(CONSTANTS), table(SMALLER)


def sizes(variable: Any) -> tuple[int, ...]:
    """Shape of a variable of a jaxpr."""
    return tuple(variable.aval.shape)


def moved(equation: Any) -> list[int | None]:
    """For every axis of the result the axis of the operand that it is; None of a new one.

    Of `transpose`, `squeeze`, `broadcast_in_dim` and of what drops axes.
    """
    params, before = equation.params, sizes(equation.invars[0])
    if "permutation" in params:
        return list(params["permutation"])
    if "broadcast_dimensions" in params:
        after = sizes(equation.outvars[0])
        result: list[int | None] = [None] * len(after)
        for i, target in enumerate(params["broadcast_dimensions"]):
            if before[i] == after[target]:
                result[target] = i
        return result
    gone = params["axes"] if "axes" in params else params["dimensions"]
    return [i for i in range(len(before)) if i not in gone]


def common_groups(before: Sequence[int], after: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """Smallest runs of axes with equal products on both sides; size 1 is left out.

    >>> common_groups((2, 3, 12), (6, 4, 1, 3))
    [([0, 1], [0]), ([2], [1, 3])]
    """
    left = [i for i, size in enumerate(before) if size != 1][::-1]
    right = [i for i, size in enumerate(after) if size != 1][::-1]
    groups = []
    while left and right:
        old, new = [left.pop()], [right.pop()]
        a, b = before[old[0]], after[new[0]]
        while a != b:
            if a < b:
                old.append(left.pop())
                a *= before[old[-1]]
            else:
                new.append(right.pop())
                b *= after[new[-1]]
        groups.append((old, new))
    return groups
