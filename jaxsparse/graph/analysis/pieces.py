"""Where the channels of a group lie on an axis: in pieces, each a grid of factors."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Int, Shaped

_NO_PRIMITIVES = ("input", "output", "constant", "block", "keep", "unused", "empty")


@dataclasses.dataclass(frozen=True)
class Cause:
    """Why channels are pinned.

    Attributes:
      primitive: name of the JAX primitive, or "input", "output",
        "constant", "block", "keep", "unused", "empty".
      reason: what it does to the axis.
      op: number of the op in `Channels.ops`, None for what is none of them.
    """

    primitive: str
    reason: str
    op: int | None = None

    def __str__(self) -> str:
        return (
            self.reason if self.primitive in _NO_PRIMITIVES else f"{self.primitive} {self.reason}"
        )


@dataclasses.dataclass(frozen=True)
class Factor:
    """What one factor of a piece indexes.

    Attributes:
      group: number of the group in `Channels.groups`, None if pinned; of `Terms.pieces` the
        atom.
      size: how many channels.
      stride: distance of two neighbours on the axis.
      cause: why it is pinned; None if it is free.
    """

    group: int | None
    size: int
    stride: int
    cause: Cause | None = None

    @property
    def atom(self) -> int:
        """The atom, in what `Terms.pieces` returns."""
        assert self.group is not None
        return self.group


@dataclasses.dataclass(frozen=True)
class Piece:
    """Part of an axis: position = offset + sum of (channel of a factor) * stride.

    Most axes are one piece with one factor. Heads and head_dim in one axis are two
    factors; query, key and value side by side are three pieces.

    Attributes:
      offset: position where it begins.
      factors: major to minor.
    """

    offset: int
    factors: tuple[Factor, ...]

    @property
    def size(self) -> int:
        """Positions of the axis in it."""
        return math.prod(factor.size for factor in self.factors)

    def grid(self) -> Int[np.ndarray, "..."]:
        """Positions on the axis, one dimension for every factor."""
        return self.at([np.arange(factor.size) for factor in self.factors])

    def at(self, channels: Sequence[Int[np.ndarray, "_"]]) -> Int[np.ndarray, "..."]:
        """Positions of some channels of every factor, one dimension for every factor."""
        grid = np.full([len(c) for c in channels], self.offset)
        for i, (chosen, factor) in enumerate(zip(channels, self.factors, strict=True)):
            grid = grid + along(i, grid.ndim, chosen * factor.stride)
        return grid


def along(i: int, rank: int, vector: Shaped[np.ndarray, " n"]) -> Shaped[np.ndarray, "..."]:
    """A vector as an array of some rank that varies along axis i only."""
    return vector.reshape([-1 if k == i else 1 for k in range(rank)])


def outer(vectors: Sequence[Bool[np.ndarray, "_"]]) -> Bool[np.ndarray, "..."]:
    """True where all of some vectors are, each along its own axis."""
    grid = np.ones([len(vector) for vector in vectors], bool)
    for i, vector in enumerate(vectors):
        grid &= along(i, grid.ndim, vector)
    return grid


def others(i: int, rank: int) -> tuple[int, ...]:
    """All axes but one."""
    return tuple(k for k in range(rank) if k != i)
