"""Elementwise primitives, and those that make numbers of their own."""

import jax
import numpy as np

from jaxsparse import jaxprs
from jaxsparse.graph.analysis.constants import Constants, agreed, as_float64
from jaxsparse.graph.analysis.registry import channels, constants, sizes
from jaxsparse.jaxprs import ELEMENTWISE, IDENTITIES


@channels(ELEMENTWISE)
def elementwise(graph, equation, *operands):
    """Axes of equal size are the same channels; axes of size 1 broadcast."""
    shape = sizes(equation.outvars[0])
    axes: list[int | None] = [None] * len(shape)
    for operand in filter(None, operands):
        for i, axis in enumerate(operand):
            known = axes[i]
            if graph.terms.size(axis) != shape[i]:
                continue
            if known is None:
                axes[i] = axis
            else:
                graph.unify(known, axis)
    return [[graph.terms.atom(n) if a is None else a for a, n in zip(axes, shape, strict=True)]]


@constants(ELEMENTWISE)
def elementwise_constants(walk, equation, *operands):
    """The primitive on what is known of slices along each axis."""
    shape = sizes(equation.outvars[0])
    spread = [_spread(known, shape) for known in operands]
    axes = [_mapped(equation, vectors) for vectors in zip(*spread, strict=True)]
    if shape:
        return [Constants.of(axes)]
    value = _mapped(equation, [np.array([known.value]) for known in operands])
    return [Constants.of([], value[0])]


def _mapped(equation, vectors):
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
    # Whoever asks may be traced; these are numbers.
    with jax.ensure_compile_time_eval():
        found = as_float64(jaxprs.bind(equation, numbers)[0])
    return np.where(known, found, np.nan)


def _spread(known, shape):
    """Vectors of an operand as broadcast to a shape."""
    if not known.axes:
        return [np.full(size, known.value) for size in shape]
    return [
        np.broadcast_to(vector, size) if vector.size == 1 else vector
        for vector, size in zip(known.axes, shape, strict=True)
    ]


@channels(IDENTITIES)
@constants("optimization_barrier sharding_constraint reshard device_put")
def identity(graph, equation, *operands):
    """Hands through."""
    return operands


@channels("bitcast_convert_type")
def bitcast_convert_type(graph, equation, operand):
    """Elementwise; one number may become several along a new last axis, or several one."""
    after = sizes(equation.outvars[0])
    axes = list(operand[: len(after)])
    if len(after) > len(axes):
        axes.append(graph.pinned(after[-1], "cuts numbers into bytes"))
    elif len(after) < len(operand):
        graph.pin(operand[-1], "makes numbers of bytes")
    return [axes]


@channels("iota")
def iota(graph, equation, *operands):
    """Numbers along one axis, whose order they say; uniform along the others."""
    axes = [graph.terms.atom(size) for size in equation.params["shape"]]
    graph.pin(axes[equation.params["dimension"]], "numbers the positions of the axis")
    return [axes]


@channels("random_bits")
def random_bits(graph, equation, keys):
    """Every position has a random number of its own."""
    for axis in keys:
        graph.pin(axis, "has keys of its own")
    shape = sizes(equation.outvars[0])
    return [[graph.told_apart(size, "draws a number for each") for size in shape]]
