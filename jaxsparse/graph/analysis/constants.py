"""Which slices of an array are surely one number, and which number: zero, above all."""

import dataclasses
from collections.abc import Sequence
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Num

from jaxsparse.graph.analysis.pieces import others

# The number of every slice along an axis; NaN where it is not known to be one number.
Vector = Num[np.ndarray, "_"]

# Integers beyond it are not all float64.
EXACT = 2**53


@dataclasses.dataclass(frozen=True)
class Constants:
    """What is known of an array whatever the inputs of the program are.

    Attributes:
      axes: for every axis, at each of its positions the number that all entries of the
        slice are; NaN if unknown.
      value: the number that all entries are, NaN if unknown.
    """

    axes: tuple[Vector, ...]
    value: float = np.nan

    @classmethod
    def of(cls, axes: Sequence[Vector], value: float = np.nan) -> Self:
        """All entries are one number as soon as all slices along one axis are."""
        for vector in axes:
            if np.isnan(value) and vector.size and (vector == vector[0]).all():
                value = vector[0]
        if not np.isnan(value):
            axes = [np.full(vector.shape, value) for vector in axes]
        return cls(tuple(axes), float(value))

    @classmethod
    def nothing(cls, shape: Sequence[int]) -> Self:
        """Nothing is known."""
        return cls(tuple(np.full(size, np.nan) for size in shape))

    @classmethod
    def uniform(cls, shape: Sequence[int], value: float) -> Self:
        """All entries are one number."""
        return cls(tuple(np.full(size, value) for size in shape), float(value))

    @classmethod
    def array(cls, array: Any) -> Self:
        """What is to be known of numbers that are there."""
        if jnp.issubdtype(getattr(array, "dtype", np.float32), jax.dtypes.extended):
            return cls.nothing(np.shape(array))
        array = np.asarray(array)
        if not (jnp.issubdtype(array.dtype, np.number) or array.dtype == bool):
            return cls.nothing(array.shape)
        numbers = array if array.dtype == np.float32 else as_float64(array)
        if not array.ndim:
            return cls((), float(numbers))
        if not array.size:
            return cls.nothing(array.shape)
        axes = []
        for i in range(array.ndim):
            low = numbers.min(axis=others(i, array.ndim))
            high = numbers.max(axis=others(i, array.ndim))
            axes.append(np.where(low == high, low, np.nan).astype(np.float64))
        return cls.of(axes)


def as_float64(array: Any) -> Float[np.ndarray, "..."]:
    """Numbers as float64, NaN where that cannot hold them."""
    array = np.asarray(array)
    if array.dtype.kind == "c":
        return np.where(array.imag == 0, array.real, np.nan).astype(np.float64)
    if array.dtype.kind in "iu" and array.dtype.itemsize == 8:
        return np.where((array < EXACT) & (array > -EXACT), array, np.nan).astype(np.float64)
    return array.astype(np.float64)


def agreed(vectors: Sequence[Vector]) -> Vector:
    """What several slices together are: known where all are one number."""
    first, *rest = vectors
    for vector in rest:
        first = np.where(first == vector, first, np.nan)
    return first


def either(a: Constants, b: Constants) -> Constants:
    """What is known of an array that is one or the other."""
    axes = tuple(agreed(pair) for pair in zip(a.axes, b.axes, strict=True))
    return Constants(axes, a.value if a.value == b.value else np.nan)


def zeros_only(vector: Vector) -> Vector:
    """What is known to be zero, of what is known."""
    return np.where(vector == 0, 0, np.nan)


def where_zero(zero: Bool[np.ndarray, "_"]) -> Vector:
    """Zero at some positions, unknown at the others."""
    return np.where(zero, 0, np.nan)
