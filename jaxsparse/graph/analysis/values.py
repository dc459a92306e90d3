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
class Op:
    """One op of the model that depends on its inputs.

    Attributes:
      id: its number in `Channels.ops`; ops come in the order of evaluation.
      primitive: JAX's name of it; "input" and "output" for the ends.
      scope: name stack, such as "encoder/attention/query"; may be empty.
      weights: paths of the leaves which it takes.
      inputs: ids of the ops which it takes.
      shape: of its first result.
      kernel: shape of the leaf, if it is a product or convolution with one.
      groups_in: groups that it sums over ("C"), of a product with a leaf.
      groups_out: groups of its result ("K" of a product with a leaf).
      repeat: how often it runs: the length of the scans around it.
      reasons: what it pins; empty if it pins nothing.

    Of an `Analysis` groups_in and groups_out are terms.
    """

    id: int
    primitive: str
    scope: str
    weights: tuple[str, ...]
    inputs: tuple[int, ...]
    shape: tuple[int, ...]
    kernel: tuple[int, ...] | None = None
    groups_in: tuple[int, ...] = ()
    groups_out: tuple[int, ...] = ()
    repeat: int = 1
    reasons: tuple[str, ...] = ()


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
