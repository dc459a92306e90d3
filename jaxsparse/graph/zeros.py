"""Which slices of an array are surely zero."""

import dataclasses
from collections.abc import Sequence
from typing import Any, Self

import numpy as np
from jaxtyping import Bool

from jaxsparse.graph.axes import others

Vector = Bool[np.ndarray, " size"]


@dataclasses.dataclass(frozen=True)
class Zeros:
    """What is known of the zeros of an array.

    Attributes:
      axes: for every axis at which positions the slice is zero.
      value: the number that all entries are, None if unknown.
    """

    axes: tuple[Vector, ...]
    value: Any = None

    @classmethod
    def of(cls, axes: Sequence[Vector], value: Any = None) -> Self:
        """All entries are zero as soon as all slices along one axis are."""
        if (value is not None and value == 0) or any(v.size and v.all() for v in axes):
            return cls(tuple(np.ones(v.shape, bool) for v in axes), 0)
        return cls(tuple(axes), value)

    @classmethod
    def nothing(cls, shape: Sequence[int]) -> Self:
        """Nothing is known."""
        return cls(tuple(np.zeros(size, bool) for size in shape))

    @classmethod
    def array(cls, array: Any) -> Self:
        """Zeros of numbers that are there."""
        array = np.asarray(array)
        if array.dtype.kind not in "biufc" and not np.issubdtype(array.dtype, np.number):
            return cls.nothing(array.shape)
        if array.ndim == 0:
            return cls((), array[()])
        other = array != 0
        axes = [~other.any(axis=others(i, array.ndim)) for i in range(array.ndim)]
        same = array.size and bool((array == array.flat[0]).all())
        return cls.of(axes, array.flat[0] if same else None)
