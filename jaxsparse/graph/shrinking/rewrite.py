"""Runs a traced program with some of its channels gone.

Every array is smaller where channels were removed; primitives that carry shapes
among their parameters get the new ones, which follow from the terms of their axes.
"""

from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

import jax
import numpy as np
from jaxtyping import Bool

from jaxsparse import control, jaxprs
from jaxsparse.graph.analysis.axes import Terms
from jaxsparse.graph.analysis.pieces import outer
from jaxsparse.graph.analysis.registry import SMALLER
from jaxsparse.graph.analysis.symbolic import is_symbolic
from jaxsparse.graph.analysis.trace import Analysis
from jaxsparse.graph.analysis.values import Record, Value, Walked

Vector = Bool[np.ndarray, "_"]


class Kept:
    """Which channels of every atom are left.

    Attributes:
      terms: of the program.
      atoms: by atom True where a channel is left; atoms that are not named are whole.
    """

    def __init__(self, terms: Terms, atoms: Mapping[int, Vector]):
        self.terms, self.atoms = terms, dict(atoms)
        self._vectors: dict[int, Vector] = {}

    def vector(self, term: int) -> Vector:
        """Which positions of an axis are left."""
        if term not in self._vectors:
            self._vectors[term] = self._vector(term)
        return self._vectors[term]

    def _vector(self, term):
        left = np.ones(self.terms.size(term), bool)
        for piece in self.terms.pieces(term):
            chosen = [self.atoms.get(f.atom, np.ones(f.size, bool)) for f in piece.factors]
            left[piece.grid()] = outer(chosen)
        return left

    def size(self, term: int, dim: Any) -> Any:
        """How many positions of an axis of some size, which may be symbolic, are left."""
        left = self.vector(term)
        if left.all():
            return dim
        if not is_symbolic(dim):
            return int(left.sum())
        if len(self.terms.pieces(term)) != 1:
            raise ValueError(
                f"an axis of the symbolic size {dim} has parts some of which lost channels; "
                "shapes that are numbers would work"
            )
        share = Fraction(int(left.sum()), left.size)
        return dim * share.numerator // share.denominator

    def shape(self, value: Value, variable: Any) -> tuple[Any, ...]:
        """Shape of the smaller array that a variable of the program becomes."""
        dims = zip(value.axes, variable.aval.shape, strict=True)
        return tuple(self.size(term, dim) for term, dim in dims)

    def cut(self, array: Any, value: Value) -> Any:
        """Takes what is left of an array that is whole."""
        for axis, term in enumerate(value.axes):
            left = self.vector(term)
            if not left.all():
                array = jax.numpy.take(array, np.flatnonzero(left), axis=axis)
        return array


def run(analysis: Analysis, kept: Kept, operands: Sequence[Any]) -> list[Any]:
    """The results of a program, of smaller parameters and the same inputs."""
    return _Rewriter(kept).run(analysis.program, operands, analysis.walked)


class _Rewriter:
    def __init__(self, kept: Kept):
        self.kept = kept
        self.record: Any = None

    def run(self, program, operands, walked: Walked) -> list[Any]:
        """The results of a program, cut where it returns a constant of its own."""
        records = iter(walked.records)
        results = jaxprs.walk(program, operands, lambda e, o: self.visit(e, o, next(records)))
        return self.cut(results, walked.results, program[0].outvars)

    def visit(self, equation, operands, record: Record) -> Sequence[Any]:
        values = (*record.operands, *record.results)
        if all(self.kept.vector(term).all() for value in values for term in value.axes):
            return jaxprs.bind(equation, operands)
        # Constants of the program, and random numbers, are whole until they meet what is not.
        operands = self.cut(operands, record.operands, equation.invars)
        if inner := jaxprs.programs(equation):

            def run(number, operands):
                return self.run(inner[number], operands, record.inner[number])

            return control.rebuild(equation, operands, run, control.Boundary())
        rule = SMALLER.get(equation.primitive.name)
        if rule is None:
            return jaxprs.bind(equation, operands)
        self.record = record
        results = rule(self, equation, *operands)
        return results if isinstance(results, list) else [results]

    def cut(self, arrays: Sequence[Any], values: Sequence[Value], variables) -> list[Any]:
        """The arrays, of those that are whole what is left."""
        return [
            self.kept.cut(x, value) if np.shape(x) != self.kept.shape(value, variable) else x
            for x, value, variable in zip(arrays, values, variables, strict=True)
        ]

    def shape(self, equation) -> tuple[Any, ...]:
        """Shape of the smaller result of the equation that is visited."""
        return self.kept.shape(self.record.results[0], equation.outvars[0])
