"""What each primitive does to constants: one rule a primitive.

A rule gets the walk, the equation, the Constants of its operands and its record, notes
what of a summed axis is needed, and returns the Constants of its results.
"""

from collections.abc import Callable, Sequence

import numpy as np

from jaxsparse import jaxprs
from jaxsparse.graph import constant_products as products
from jaxsparse.graph import constant_shapes as shapes
from jaxsparse.graph.constants import Constants, agreed, as_float64
from jaxsparse.graph.rules import RULES, sizes
from jaxsparse.graph.rules.elementwise import elementwise

ConstantRule = Callable[..., Sequence[Constants]]


def _elementwise(walk, equation, operands, record):
    del walk, record
    shape = sizes(equation.outvars[0])
    spread = [_spread(known, shape) for known in operands]
    axes = [_mapped(equation, vectors) for vectors in zip(*spread, strict=True)]
    if shape:
        return [Constants.of(axes)]
    value = _mapped(equation, [np.array([known.value]) for known in operands])
    return [Constants.of([], value[0])]


def _mapped(equation, vectors):
    """The primitive on what is known of slices along one axis."""
    name = equation.primitive.name
    result = _evaluate(equation, vectors)
    if name in ("mul", "and"):
        result[np.logical_or.reduce([vector == 0 for vector in vectors])] = 0
    elif name == "div":
        result[vectors[0] == 0] = 0
    elif name == "select_n":
        same = agreed(vectors[1:])
        result = np.where(np.isnan(same), result, same)
    return result


def _evaluate(equation, vectors):
    known = ~np.logical_or.reduce([np.isnan(vector) for vector in vectors])
    if not known.any():
        return np.full(known.shape, np.nan)
    # The numbers of a known place for those that are not: no overflow of what nobody has.
    first = np.flatnonzero(known)[0]
    numbers = [
        np.where(known, vector, vector[first]).astype(variable.aval.dtype)
        for vector, variable in zip(vectors, equation.invars, strict=True)
    ]
    return np.where(known, as_float64(jaxprs.bind(equation, numbers)[0]), np.nan)


def _spread(known, shape):
    """Vectors of an operand as broadcast to a shape."""
    if not known.axes:
        return [np.full(size, known.value) for size in shape]
    return [
        np.broadcast_to(vector, size) if vector.size == 1 else vector
        for vector, size in zip(known.axes, shape, strict=True)
    ]


CONSTANT_RULES: dict[str, ConstantRule] = {
    **{name: _elementwise for name, rule in RULES.items() if rule is elementwise},
    "dot_general": products.dot_general,
    "conv_general_dilated": products.conv_general_dilated,
    "reduce_sum": products.reduce_sum,
    **dict.fromkeys(
        ["reduce_max", "reduce_min", "reduce_prod", "reduce_and", "reduce_or", "reduce_xor"],
        products.reduce_other,
    ),
    **dict.fromkeys(["reduce", "argmax", "argmin"], products.reduce_other),
    "broadcast_in_dim": shapes.broadcast_in_dim,
    "transpose": shapes.transpose,
    "rev": shapes.rev,
    "squeeze": shapes.squeeze,
    "reshape": shapes.reshape,
    "concatenate": shapes.concatenate,
    "stack": shapes.stack,
    "unstack": shapes.unstack,
    "split": shapes.split,
    "slice": shapes.slice_,
    "pad": shapes.pad,
    "tile": shapes.tile,
    "gather": shapes.gather,
    "dynamic_slice": shapes.dynamic_slice,
    "dynamic_update_slice": shapes.dynamic_update_slice,
    **dict.fromkeys(["cumsum", "cumprod", "cummax", "cummin", "sort"], shapes.along_an_axis),
    "reduce_window_sum": products.reduce_window,
    "reduce_window_max": products.reduce_window,
    "reduce_window_min": products.reduce_window,
    **dict.fromkeys(
        ["optimization_barrier", "sharding_constraint", "reshard", "device_put"], shapes.identity
    ),
}
