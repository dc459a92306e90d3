"""The box that coordinates lie in, and their places in it as one integer."""

import dataclasses
import math
import operator
from collections.abc import Sequence
from typing import Self

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, Int32

from jaxsparse.activations.native import TwoFold
from jaxsparse.kernels.cpu import clouds

LARGEST = 2**31 - 1
NOWHERE = LARGEST  # the key of padding: larger than every place


@dataclasses.dataclass(frozen=True)
class Bounds:
    """Where sites may be: batches [0, batch), and [lower, upper) along each spatial axis.

    Part of the type of what lies in it, like a shape: other bounds compile anew, so give a
    data set one for all its clouds. Its places must be fewer than 2^31, since places are
    found by an int32.

    Attributes:
      batch: how many clouds.
      lower: the least coordinate of each axis, negative too.
      upper: one past the largest.

    Raises:
      ValueError: an empty or overfull box, or coordinates beyond int32.
      TypeError: numbers that are not whole.

    Example:
      >>> from jaxsparse.activations import Bounds
      >>> Bounds(2, (-8, -8, 0), (8, 8, 4)).places
      2048
    """

    batch: int
    lower: tuple[int, ...]
    upper: tuple[int, ...]

    def __post_init__(self):
        object.__setattr__(self, "batch", operator.index(self.batch))
        object.__setattr__(self, "lower", tuple(map(operator.index, self.lower)))
        object.__setattr__(self, "upper", tuple(map(operator.index, self.upper)))
        if len(self.lower) != len(self.upper) or not self.lower:
            raise ValueError(f"{self} needs as many upper as lower ends, and one at least.")
        if self.batch < 1 or any(size < 1 for size in self.shape):
            raise ValueError(f"{self} holds no place; every size must be at least 1.")
        if min(self.lower) < -LARGEST - 1 or max(self.upper) > LARGEST + 1:
            raise ValueError(f"{self} reaches beyond the coordinates that int32 holds.")
        if self.places > LARGEST:
            raise ValueError(
                f"{self} has {self.places} places, more than the {LARGEST} that int32 keys tell "
                "apart; narrow the bounds, use larger voxels, or split the batch."
            )

    @classmethod
    def of_shape(cls, batch: int, shape: Sequence[int]) -> Self:
        """[0, size) along every axis."""
        return cls(batch, (0,) * len(shape), tuple(shape))

    @property
    def shape(self) -> tuple[int, ...]:
        """The size along each spatial axis."""
        return tuple(high - low for low, high in zip(self.lower, self.upper, strict=True))

    @property
    def rank(self) -> int:
        """The number of spatial axes."""
        return len(self.lower)

    @property
    def places(self) -> int:
        """How many there are, over all batches."""
        return self.batch * math.prod(self.shape)

    def __str__(self) -> str:
        axes = " x ".join(f"[{a}, {b})" for a, b in zip(self.lower, self.upper, strict=True))
        return f"bounds of {self.batch} batches of {axes}"

    def relative(self, coordinates: Int[Array, "*n axes"]) -> Int32[Array, "*n axes"]:
        """Coordinates counted from the lower ends, the batch's too.

        Exact for what lies inside: int32 wraps around, and the difference fits.
        """
        lower = np.array((0, *self.lower), np.int32)
        return coordinates.astype(jnp.int32) - lower

    def contains(self, relative: Int32[Array, "*n axes"]) -> Bool[Array, "*n"]:
        """Which rows of `relative` lie inside."""
        ends = np.array((self.batch, *self.shape), np.int32)
        return jnp.all((relative >= 0) & (relative < ends), axis=-1)

    def keys(self, relative: Sequence[Int32[Array, "..."]]) -> Int32[Array, "..."]:
        """Places in row-major order from one array an axis, the batch first; all inside."""
        key = relative[0]
        for size, column in zip(self.shape, relative[1:], strict=True):
            key = key * size + column
        return key

    def coordinates(self, keys: Int32[Array, "n"]) -> Int32[Array, "n axes"]:
        """Undoes `relative` and `keys`; rows of -1 for padding."""
        columns, rest = [], keys
        for size, lower in zip(reversed(self.shape), reversed(self.lower), strict=True):
            columns.append(rest % size + lower)
            rest = rest // size
        rows = jnp.stack([rest, *reversed(columns)], axis=-1)
        return jnp.where((keys == NOWHERE)[:, None], -1, rows)


def smallest_bounds(coordinates: np.ndarray) -> Bounds:
    """The tightest box around rows of (batch, *coordinate)."""
    if not len(coordinates):
        return Bounds.of_shape(1, (1,) * (coordinates.shape[1] - 1))
    lower, upper = coordinates.min(axis=0), coordinates.max(axis=0)
    return Bounds(int(upper[0]) + 1, tuple(lower[1:].tolist()), tuple((upper[1:] + 1).tolist()))


def sorted_places(keys: Int32[Array, "n"]) -> tuple[Int32[Array, "n"], Int32[Array, "n"]]:
    """Keys in rising order, none of them negative, and the row each came from."""
    keys, rows = _SORT(keys)
    return keys, rows


def distinct_places(
    keys: Int32[Array, "n"], room: int
) -> tuple[Int32[Array, "room"], Int32[Array, ""]]:
    """Different keys in rising order, as many as there is room for, `NOWHERE` behind them.

    Returns:
      The keys, and how many there are.
    """
    keys, count = _DISTINCT(keys, room=room)
    return keys, count


def _sort(keys):
    rows = jax.lax.iota(jnp.int32, keys.shape[0])
    return jax.lax.sort((keys, rows), num_keys=1, is_stable=True)


def _distinct(keys, room):
    keys = jnp.sort(keys)
    first = (keys != NOWHERE) & jnp.concatenate([jnp.ones(1, bool), keys[1:] != keys[:-1]])
    rank = jnp.cumsum(first, dtype=jnp.int32)
    kept = jnp.full(room, NOWHERE, jnp.int32)
    return kept.at[jnp.where(first, rank - 1, room)].set(keys, mode="drop"), rank[-1]


_SORT = TwoFold("cloud_sort", clouds.sort, _sort)
_DISTINCT = TwoFold("cloud_distinct", clouds.distinct, _distinct)
