"""Which arrays hold the channels of a group together: what a residual stream is told by."""

import functools
from collections.abc import Iterator

from jaxsparse.graph.analysis.trace import Analysis
from jaxsparse.graph.analysis.values import Value, Walked


class Lineages:
    """The ops of a program, joined where their results go into one another.

    Two ops are of one lineage of a channel axis if an equation, or a turn of a loop, makes an
    array of that axis of both. The two uses of a layer that occurs twice are two lineages,
    the layers along a residual stream are one.

    Args:
      analysis: of the program.
    """

    def __init__(self, analysis: Analysis):
        @functools.cache
        def atoms(axes: tuple[int, ...]) -> set[int]:
            return {f.atom for f in analysis.terms.factors(axes) if f.cause is None}

        self._parent: dict[tuple[int, int], tuple[int, int]] = {}
        for values in _together(analysis.walked):
            joined: dict[int, tuple[int, int]] = {}
            for value in values:
                for atom in atoms(value.axes):
                    for op in value.ops:
                        one = self._root((atom, op))
                        self._parent[one] = joined.setdefault(atom, one)

    def of(self, atom: int, op: int) -> tuple[int, int] | None:
        """The lineage of an op's result; None if that has no such axis."""
        return self._root((atom, op)) if (atom, op) in self._parent else None

    def _root(self, key: tuple[int, int]) -> tuple[int, int]:
        above = self._parent.setdefault(key, key)
        while above != key:
            key, above = above, self._parent[above]
        return key


def _together(walked: Walked) -> Iterator[tuple[Value, ...]]:
    """Arrays whose channels are handed from one to the other."""
    for record in walked.records:
        for inner in record.inner:
            yield from _together(inner)
        if record.inner:
            # A carry comes from before the loop and from its turns, a result from any branch.
            yield from ((value,) for value in record.results)
        else:
            yield record.operands + record.results
