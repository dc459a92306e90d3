"""Channels that somebody says go together, such as those of a head."""

import re
from collections.abc import Mapping

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
      ValueError: for blocks that no leaf has.
    """
    for pattern, (axis, size) in blocks.items():
        paths = [path for path in leaves if re.fullmatch(pattern, path)]
        if not paths:
            raise ValueError(f"blocks: {pattern!r} matches no leaf; {near_misses(pattern, leaves)}")
        for path in paths:
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
