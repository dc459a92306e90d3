"""Which steps leave a weight what it is: a scalar times it, a mask, a cast of it."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxsparse.products.factors import VIEWS
from jaxsparse.products.sights import Plain, Value

# Primitives whose results are scalars or masks where the operand is.
ALIKE = {*VIEWS, "convert_element_type", "copy", "copy_p"}
_SAME = ("copy", "copy_p", "neg", "reduce_precision", "stop_gradient")


def value_of(operand: Any) -> Value:
    """A value, or an array that shows nothing as one."""
    return operand if isinstance(operand, Value) else Value(operand)


def plain_of(operand: Any) -> Plain | None:
    """What the numbers of an operand are known to be."""
    value = value_of(operand)
    if value.plain is None and not np.shape(value.array):
        return "scalar"
    return "mask" if value.plain is None and value.array.dtype == bool else value.plain


def alters(equation, values: Sequence[Value], place: int, path: str) -> bool:
    """Whether an elementwise result is more than one operand, times a scalar or masked.

    Args:
      equation: elementwise.
      values: its operands.
      place: of the one.
      path: of the weight that it shows.
    """
    name = equation.primitive.name
    if name in _SAME:
        return False
    if name == "convert_element_type":
        before, after = equation.invars[0].aval.dtype, equation.outvars[0].aval.dtype
        return jnp.issubdtype(before, jnp.inexact) and not jnp.issubdtype(after, jnp.inexact)
    first = 1 if name == "select_n" else 0
    others = [value for i, value in enumerate(values) if i >= first and i != place]
    plain = {plain_of(value) for value in others}
    scalars = [value for value in others if plain_of(value) == "scalar"]
    if any(sight.path == path for value in scalars for sight in value.sights):
        return True  # a scalar of the weight itself changes with it
    if name == "mul":
        return None in plain
    unfit = {"div": 1, "select_n": 0}.get(name, place)
    return place == unfit or plain != {"scalar"}
