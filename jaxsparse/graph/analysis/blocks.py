"""Channels that somebody says go together, such as those of a head, or stay."""

import re
from collections.abc import Iterable, Mapping

from jaxsparse.graph.analysis.axes import Terms
from jaxsparse.graph.analysis.pieces import Cause
from jaxsparse.graph.analysis.values import Value
from jaxsparse.trees import near_misses


def declare(
    blocks: Mapping[str, tuple[int, int]],
    shapes: Mapping[str, tuple[int, ...]],
    leaves: Mapping[str, Value],
    terms: Terms,
) -> None:
    """Pins what is inside of declared blocks, as `channels` takes them.

    Raises:
      ValueError: for blocks that no leaf has, and what is no expression.
    """
    for pattern, (axis, size) in blocks.items():
        for path in _matched("blocks", pattern, leaves):
            shape = shapes[path]
            if not -len(shape) <= axis < len(shape) or size < 1 or shape[axis] % size:
                raise ValueError(
                    f"blocks: {path!r} of shape {shape} has no axis {axis} which is a multiple "
                    f"of {size}"
                )
            cause = Cause("block", f"is one of blocks of {size}, as declared")
            inner = terms.atom(size)
            terms.pin(inner, cause)
            block = terms.product([terms.atom(shape[axis] // size), inner])
            terms.unify(leaves[path].axes[axis], block, cause)


def hold(patterns: Iterable[str], leaves: Mapping[str, Value], terms: Terms) -> None:
    """Pins all axes of the leaves that match, as `shrink` takes `keep`.

    Raises:
      ValueError: for an expression that matches no leaf, and what is none.
    """
    for pattern in patterns:
        for path in _matched("keep", pattern, leaves):
            for axis in leaves[path].axes:
                terms.pin(axis, Cause("keep", f"is kept in {path}, as asked"))


def _matched(argument: str, pattern: str, leaves: Mapping[str, Value]) -> list[str]:
    try:
        paths = [path for path in leaves if re.fullmatch(pattern, path)]
    except re.error as error:
        raise ValueError(
            f"{argument}: {pattern!r} is no regular expression: {error}; "
            f"{re.escape(pattern)!r} would match it letter by letter"
        ) from error
    if not paths:
        raise ValueError(f"{argument}: {pattern!r} matches no leaf; {near_misses(pattern, leaves)}")
    return paths
