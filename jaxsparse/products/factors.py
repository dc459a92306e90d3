"""Arrays seen as views of a weight: which of its axes each of their axes is made of.

Each axis of an array is made of *factors*, pieces of the weight's own axes. Transposing
permutes axes, reshaping regroups factors and splits them.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, Self

# A name and a size. The name begins with the axis of the weight, and goes on with
# which part of it this is; axes that are none of the weight's are numbered below 0.
Factor = tuple[tuple[int, ...], int]
Axis = tuple[Factor, ...]  # major to minor
Role = Literal["in", "out", "batch"]

_strangers = itertools.count(-1, -1)


def stranger(size: int) -> Axis:
    """An axis that is none of the weight's."""
    return (((next(_strangers),), size),) if size != 1 else ()


@dataclasses.dataclass(frozen=True, eq=False)
class Factored:
    """An array that shows a weight, transposed and reshaped.

    Attributes:
      axes: factors of every axis of the array, major to minor.
    """

    axes: tuple[Axis, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(math.prod(size for _, size in axis) for axis in self.axes)

    def seen(self, axes: Iterable[Axis], splits: Mapping[Factor, tuple[Factor, ...]]) -> Self:
        """The same weight with other axes.

        Args:
          axes: of the array.
          splits: factors that were split, with their parts.
        """
        del splits
        return dataclasses.replace(self, axes=tuple(axes))

    def transpose(self, permutation: Sequence[int]) -> Self:
        """Axes in another order."""
        return self.seen((self.axes[i] for i in permutation), {})

    def reshape(self, shape: Sequence[int]) -> Self | None:
        """Another shape; None where an axis would be cut across a factor, or is not known."""
        left = [factor for axis in self.axes for factor in axis if factor[1] != 1]
        if 0 in shape or not all(isinstance(size, int) for size in shape):
            return None
        if math.prod(shape) != math.prod(size for _, size in left):
            return None
        axes, splits = [], {}
        for size in shape:
            axis, filled = [], 1
            while filled < size:
                name, have = left.pop(0)
                need = size // filled
                if have > need:
                    if size % filled or have % need:
                        return None
                    major, minor = ((*name, 0), need), ((*name, 1), have // need)
                    splits[name, have] = (major, minor)
                    left.insert(0, minor)
                    name, have = major
                axis.append((name, have))
                filled *= have
            if filled != size:
                return None
            axes.append(tuple(axis))
        return self.seen(axes, splits)

    def squeeze(self, dimensions: Sequence[int]) -> Self:
        """Without some axes of size 1."""
        return self.seen((axis for i, axis in enumerate(self.axes) if i not in dimensions), {})

    def broadcast(self, shape: Sequence[int], places: Sequence[int]) -> Self | None:
        """`broadcast_in_dim`; what it repeats are axes that are none of the weight's."""
        if not all(isinstance(size, int) for size in shape):
            return None
        axes = [stranger(size) for size in shape]
        for place, axis, size in zip(places, self.axes, self.shape, strict=True):
            if size == shape[place]:
                axes[place] = axis
        return self.seen(axes, {})


def _reshape(array, params):
    return None if params["dimensions"] else array.reshape(params["new_sizes"])


# By primitive, what an array that shows a weight becomes; None is what shows it no more.
VIEWS: dict[str, Callable[[Any, Mapping[str, Any]], Any]] = {
    "transpose": lambda array, params: array.transpose(params["permutation"]),
    "reshape": _reshape,
    "squeeze": lambda array, params: array.squeeze(params["dimensions"]),
    "broadcast_in_dim": lambda array, params: array.broadcast(
        params["shape"], params["broadcast_dimensions"]
    ),
}


def split(factors: Iterable[Factor], splits: Mapping[Factor, tuple[Factor, ...]]) -> Axis:
    """Factors with those that were split in parts."""
    return tuple(
        part for f in factors for part in (split(splits[f], splits) if f in splits else (f,))
    )


def roles(
    summed: Iterable[Axis], free: Iterable[Axis], batched: Iterable[Axis]
) -> dict[int, Role | None]:
    """What a product makes of every axis of a weight that has a factor in it.

    A part that is a batch says nothing where other parts of the axis are summed over or
    stay: block-diagonal weights are often one axis. None is an axis that is summed over in
    part.
    """
    found: dict[int, set[Role]] = {}
    parts: tuple[tuple[Role, Iterable[Axis]], ...]
    parts = ("in", summed), ("out", free), ("batch", batched)
    for role, axes in parts:
        for axis in axes:
            for name, _ in axis:
                if name[0] >= 0:
                    found.setdefault(name[0], set()).add(role)
    ends = {axis: (seen - {"batch"}) or seen for axis, seen in found.items()}
    return {axis: seen.pop() if len(seen) == 1 else None for axis, seen in ends.items()}
