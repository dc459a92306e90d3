"""What the analysis knows of every array in a traced program."""

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class Value:
    """An array as the analysis sees it.

    Attributes:
      axes: a term for every axis (`axes.Terms`).
      ops: ops that it comes from directly; empty for what does not depend on an
        input of the function, which is parameters, constants and what is made of
        them.
      weights: paths of the leaves in it, where `ops` is empty.
      uniform: of constants, for every axis whether all its slices are equal; empty for
        what is no constant. Such an axis is nobody's channels.
    """

    axes: tuple[int, ...]
    ops: frozenset[int] = frozenset()
    weights: frozenset[str] = frozenset()
    uniform: tuple[bool, ...] = ()


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
