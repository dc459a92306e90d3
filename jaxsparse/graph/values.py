"""What the analysis knows of every array in a traced program."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


@dataclasses.dataclass(frozen=True)
class Value:
    """An array as the analysis sees it.

    Attributes:
      axes: a term for every axis (`axes.Terms`).
      ops: ops that it comes from directly; empty for what does not depend on an
        input of the function, which is parameters, constants and what is made of
        them.
      weights: paths of the leaves in it, where `ops` is empty.
    """

    axes: tuple[int, ...]
    ops: frozenset[int] = frozenset()
    weights: frozenset[str] = frozenset()


@dataclasses.dataclass(frozen=True)
class Record:
    """An equation as it was visited.

    Attributes:
      equation: of the jaxpr, with numbers for symbolic sizes.
      operands, results: what the analysis knows of them.
      inner: the programs that the equation runs, in the order of `jaxprs.programs`.
    """

    equation: Any
    operands: tuple[Value, ...]
    results: tuple[Value, ...]
    inner: tuple["Walked", ...] = ()


@dataclasses.dataclass(frozen=True)
class Walked:
    """A program as it was walked: what is known of its results, and its equations."""

    results: tuple[Value, ...]
    records: tuple[Record, ...]


def uniform_axes(constant: Any) -> list[bool]:
    """For every axis of a constant whether all its slices are equal."""
    if jnp.issubdtype(getattr(constant, "dtype", float), jax.dtypes.extended):
        return [False] * np.ndim(constant)  # keys of random numbers
    array = np.asarray(constant)
    if array.dtype.kind == "V" or array.dtype.hasobject:
        return [False] * array.ndim
    numbers = array.reshape(array.shape)
    return [
        size == 1 or bool(np.all(_same(numbers, np.take(numbers, [0], axis=i)))) if size else False
        for i, size in enumerate(array.shape)
    ]


def _same(a, b):
    # A NaN is as good as another: masks are often made of them.
    return (a == b) | ((a != a) & (b != b))
