"""The steps that a program on one straight line is made of."""

import dataclasses
from collections.abc import Hashable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxsparse.products.altering import value_of
from jaxsparse.products.reading import Reader
from jaxsparse.products.sights import Value


class Ref(int):
    """The number of a variable."""


class Pick:
    """The step that takes one slice of what a `scan` goes through."""

    key = "pick"

    def results(self, operands: Sequence[Any]) -> list[Value]:
        whole, place = value_of(operands[0]), operands[1]
        array = lax.dynamic_index_in_dim(whole.array, place, 0, keepdims=False)
        at = int(place) if isinstance(place, np.generic) else place
        sights = tuple(sight.without([0], "batch", [at]) for sight in whole.sights)
        return [dataclasses.replace(whole, array=array, sights=sights, rows=())]


@dataclasses.dataclass(frozen=True)
class Join:
    """The step that puts what the turns of a `scan` return side by side."""

    dtype: Any

    @property
    def key(self) -> Hashable:
        return "join", self.dtype

    def results(self, operands: Sequence[Any]) -> list[Value]:
        arrays = [jnp.asarray(value_of(operand).array, self.dtype) for operand in operands]
        return [Value(jnp.stack(arrays), data=any(value_of(o).varies for o in operands))]


@dataclasses.dataclass(frozen=True)
class Use:
    """A named weight in a product of a step.

    Attributes:
      path: of the weight.
      index: by batch axis of its site which kernel it is, None where that is not known before
        the program runs, or all.
      met: equal for weights that meet the same value in the same way; None of what is in a
        loop or branch.
      rows: of the value as a matrix, of one kernel.
    """

    path: str
    index: tuple[int | None, ...]
    met: Hashable | None
    rows: int


@dataclasses.dataclass(frozen=True, eq=False)
class Step:
    """One step of the line.

    Attributes:
      equation: JAX's, or a `Pick` or `Join`.
      operands: variables and literals.
      results: variables.
      moves: whether it is computed once a batch, in its turn. All else follows from weights and
        constants and is computed again where it is needed, from the weights as they are then.
      uses: the named weights that its products meet.
      key: of what it does, see `sameness`.
    """

    equation: Any
    operands: tuple[Any, ...]
    results: tuple[Ref, ...]
    moves: bool
    uses: tuple[Use, ...]
    key: Hashable

    def run(self, reader: Reader, operands: Sequence[Any]) -> Sequence[Any]:
        """Its results as a reader has them."""
        if isinstance(self.equation, Pick | Join):
            return self.equation.results(operands)
        return reader.visit(self.equation, operands)
