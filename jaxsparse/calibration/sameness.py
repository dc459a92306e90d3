"""When two pieces of a program are the same: equal keys, so that one compilation serves both.

JAX's own cache knows a program by its identity, so that thirty equal layers would be compiled
thirty times. A key has the primitives, their parameters and how results meet operands, and
leaves out names of variables and places in the source. What cannot be compared by value counts
by identity: then two pieces are compiled apart, never taken for one another.
"""

from collections.abc import Hashable, Mapping
from typing import Any

import jax
import numpy as np
from jax.extend import core


def of_equation(equation) -> Hashable:
    """A key of what an equation does, whatever it is applied to."""
    return (
        equation.primitive.name,
        of_value(equation.params),
        equation.ctx,  # JAX holds one of each
        tuple(atom.aval for atom in equation.invars),
        tuple(atom.aval for atom in equation.outvars),
    )


def of_value(value: Any) -> Hashable:
    """A key of a parameter or a literal.

    >>> of_value({"axes": (0, 1)}) == of_value({"axes": (0, 1)})
    True
    >>> of_value(0.0) == of_value(-0.0), of_value(1) == of_value(1.0)
    (False, False)
    """
    if isinstance(value, core.ClosedJaxpr):
        return _program(value.jaxpr), tuple(map(_Same, value.consts))
    if isinstance(value, core.Jaxpr):
        return _program(value)
    if isinstance(value, Mapping):
        return tuple((name, of_value(value[name])) for name in sorted(value, key=str))
    if isinstance(value, tuple | list):
        return type(value), tuple(map(of_value, value))
    if isinstance(value, float | complex):
        return type(value), repr(value)
    if isinstance(value, np.ndarray | np.generic):
        return value.shape, value.dtype, value.tobytes()
    if isinstance(value, jax.Array):
        return _Same(value)
    try:
        hash(value)
    except TypeError:
        return _Same(value)
    return type(value), value


class _Same:
    """Equal to itself alone; holds its value, so that nothing else takes its place."""

    def __init__(self, value: Any):
        self._value = value

    def __eq__(self, other):
        return isinstance(other, _Same) and other._value is self._value

    def __hash__(self):
        return id(self._value)


def _program(jaxpr) -> Hashable:
    numbers: dict[Any, int] = {}

    def named(atom):
        if isinstance(atom, core.Literal):
            return atom.aval, of_value(atom.val)
        return numbers.setdefault(atom, len(numbers))

    given = [(named(v), v.aval) for v in (*jaxpr.constvars, *jaxpr.invars)]
    steps = [
        (
            of_equation(equation),
            tuple(map(named, equation.invars)),
            tuple(map(named, equation.outvars)),
        )
        for equation in jaxpr.eqns
    ]
    return tuple(given), tuple(steps), tuple(map(named, jaxpr.outvars))
