"""Along which axes the constants of a program are the same everywhere.

A mask of ones for the heads of every layer does not tie the heads of one layer to those of
another: any slice of it does for any of them. So such axes are new ones wherever they are used.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxsparse.graph.analysis.registry import common_groups, moved, sizes
from jaxsparse.graph.analysis.values import Value
from jaxsparse.jaxprs import ELEMENTWISE, IDENTITIES

_MOVED = ("broadcast_in_dim", "transpose", "squeeze")
_SLICED = ("slice", "dynamic_slice")


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


def still_uniform(equation: Any, operands: Sequence[Value]) -> tuple[bool, ...]:
    """For every axis of what an equation makes of constants whether all its slices are equal."""
    name, after = equation.primitive.name, sizes(equation.outvars[0])
    shapes = [sizes(variable) for variable in equation.invars]
    if name == "iota":
        return tuple(i != equation.params["dimension"] for i in range(len(after)))
    if not operands:
        return (False,) * len(after)
    known = [value.uniform or (False,) * len(value.axes) for value in operands]
    first = known[0]
    if name in ELEMENTWISE.split():
        pairs = [pair for pair in zip(known, shapes, strict=True) if pair[1]]
        return tuple(all(same[i] or n[i] == 1 for same, n in pairs) for i in range(len(after)))
    if name in _SLICED or name in IDENTITIES.split():
        return first
    if name in _MOVED:
        return tuple(i is None or first[i] for i in moved(equation))
    if name == "reshape" and 0 not in after:
        found = [True] * len(after)
        for old, new in common_groups(shapes[0], after):
            for i in new:
                found[i] = all(first[k] for k in old)
        return tuple(found)
    return (False,) * len(after)
