"""Numbers for symbolic sizes, so that a program with a symbolic batch can be analysed.

Which axes are the same channels does not depend on how many examples there are. So every
dimension variable gets a number that no size of the program can be mistaken for.
"""

import dataclasses
import math
import operator
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax import export

# What `str` of a symbolic dimension consists of, as `jax.export.symbolic_shape` reads it.
FUNCTIONS = {"floordiv": operator.floordiv, "mod": operator.mod, "max": max, "min": min}
# Sizes of a program this close to a number might be that of t + 1 or the like.
MARGIN = 8


@dataclasses.dataclass(frozen=True)
class Equation:
    """An equation of a jaxpr, with numbers for symbolic sizes."""

    primitive: Any
    params: Mapping[str, Any]
    invars: tuple[Any, ...]
    outvars: tuple[Any, ...]
    source_info: Any
    ctx: Any


@dataclasses.dataclass(frozen=True)
class Variable:
    """A variable of a jaxpr, of which only the shape and dtype are known."""

    aval: jax.ShapeDtypeStruct


class StandIns:
    """The numbers of all dimension variables of some shapes.

    Args:
      shapes: of the arguments of the program.
    """

    def __init__(self, shapes: Iterable[tuple[Any, ...]]):
        dims = [dim for shape in shapes for dim in shape]
        symbolic = [str(dim) for dim in dims if is_symbolic(dim)]
        taken = [int(dim) for dim in dims if not is_symbolic(dim)]
        names = {name for text in symbolic for name in re.findall(r"[A-Za-z_]\w*", text)}
        divisors = re.findall(r"(?:floordiv|mod)\([^,]*, (\d+)\)", " ".join(symbolic))
        step, primes = math.lcm(*map(int, divisors)), _primes(taken)
        self.numbers = {name: step * next(primes) for name in sorted(names - set(FUNCTIONS))}

    def size(self, dim: Any) -> int:
        """The number of a dimension."""
        if not is_symbolic(dim):
            return dim
        return int(eval(str(dim).replace("^", "**"), FUNCTIONS | self.numbers))

    def variable(self, variable: Any) -> Any:
        """The variable, with numbers."""
        shape = getattr(variable.aval, "shape", ())
        if not any(map(is_symbolic, shape)):
            return variable
        numbers = tuple(map(self.size, shape))
        return Variable(jax.ShapeDtypeStruct(numbers, variable.aval.dtype))

    def equation(self, equation: Any) -> Any:
        """The equation, with numbers; programs in it stay as they are."""
        if not self.numbers:
            return equation
        return Equation(
            equation.primitive,
            {name: self._parameter(value) for name, value in equation.params.items()},
            tuple(map(self.variable, equation.invars)),
            tuple(map(self.variable, equation.outvars)),
            equation.source_info,
            equation.ctx,
        )

    def _parameter(self, value):
        if type(value) in (tuple, list):
            return type(value)(self._parameter(part) for part in value)
        return self.size(value)


def is_symbolic(dim: Any) -> bool:
    """Whether it is a symbolic dimension, and neither a number nor anything else."""
    return not isinstance(dim, int | np.integer) and export.is_symbolic_dim(dim)


def _primes(taken: list[int]) -> Iterator[int]:
    """Primes from 101 on that no size is a multiple of, or near to."""
    number = 101
    while True:
        prime = all(number % k for k in range(2, math.isqrt(number) + 1))
        if prime and all(size % number and abs(size - number) > MARGIN for size in taken):
            yield number
        number += 1
