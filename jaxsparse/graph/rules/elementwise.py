"""Elementwise primitives, reductions, and those which depend on the order of an axis."""

from jaxsparse.graph.rules.registry import drop, rule, sizes
from jaxsparse.graph.values import Origin, Value
from jaxsparse.jaxprs import ELEMENTWISE, IDENTITIES

_REDUCTIONS = """
    reduce_and reduce_max reduce_min reduce_or reduce_prod reduce_sum reduce_xor
"""
# The result depends on the order along one axis.
_ORDERED = "cumlogsumexp cummax cummin cumprod cumsum"


@rule(ELEMENTWISE)
def elementwise(graph, equation, *operands):
    """Axes of equal size are the same channels; axes of size 1 broadcast."""
    shape = sizes(equation.outvars[0])
    axes: list[int | None] = [None] * len(shape)
    arrays = [value for value in operands if value.axes]
    for value in arrays:
        for i, axis in enumerate(value.axes):
            if graph.terms.size(axis) == shape[i]:
                known = axes[i]
                if known is None:
                    axes[i] = axis
                else:
                    graph.unify(known, axis)
    terms = [graph.terms.atom(n) if a is None else a for a, n in zip(axes, shape, strict=True)]
    return [Value(tuple(terms), _common_origin(arrays))]


def _common_origin(values):
    """What is made of one leaf and of scalars is a version of that leaf."""
    origins = [value.origin for value in values]
    if not origins or None in origins or len({origin.path for origin in origins}) != 1:
        return None
    merged = zip(*(origin.axes for origin in origins), strict=True)
    return Origin(origins[0].path, tuple(frozenset().union(*axes) for axes in merged))


@rule(IDENTITIES)
def identity(graph, equation, *operands):
    """Hands through."""
    del graph, equation
    return operands


@rule("bitcast_convert_type")
def bitcast_convert_type(graph, equation, operand):
    """Elementwise; one number may become several along a new last axis, or several one."""
    after = sizes(equation.outvars[0])
    axes = list(operand.axes[: len(after)])
    if len(after) > len(axes):
        axes.append(graph.pinned(after[-1], "cuts numbers into bytes"))
    elif len(after) < len(operand.axes):
        graph.pin(operand.axes[-1], "makes numbers of bytes")
    return [Value(tuple(axes))]


@rule("iota")
def iota(graph, equation, *operands):
    """Numbers along one axis, whose order they say; uniform along the others."""
    del operands
    axes = tuple(graph.terms.atom(size) for size in equation.params["shape"])
    graph.pin(axes[equation.params["dimension"]], "numbers the positions of the axis")
    return [Value(axes)]


@rule("random_bits")
def random_bits(graph, equation, keys):
    """Every position has a random number of its own."""
    for axis in keys.axes:
        graph.pin(axis, "has keys of its own")
    shape = sizes(equation.outvars[0])
    return [Value(tuple(graph.told_apart(size, "draws a number for each") for size in shape))]


@rule(_REDUCTIONS)
def reduction(graph, equation, operand):
    """Drops axes: a sum does not ask for the order."""
    del graph
    return [drop(operand, equation.params["axes"])]


@rule("reduce")
def reduce(graph, equation, *operands):
    """A reduction by any associative and commutative function."""
    del graph
    arrays = operands[: len(equation.outvars)]
    return [drop(value, equation.params["dimensions"]).without_origin() for value in arrays]


@rule("argmax argmin")
def argmax(graph, equation, operand):
    """Positions along an axis depend on its order."""
    for axis in equation.params["axes"]:
        graph.pin(operand.axes[axis], "returns positions along the axis")
    return [drop(operand, equation.params["axes"]).without_origin()]


@rule(_ORDERED)
def cumulative(graph, equation, operand):
    """Depends on the order along its axis."""
    graph.pin(operand.axes[equation.params["axis"]], "accumulates along the axis")
    return [operand.without_origin()]


@rule("sort")
def sort(graph, equation, *operands):
    """Depends on the order along its axis."""
    for value in operands:
        graph.pin(value.axes[equation.params["dimension"]], "sorts along the axis")
        graph.unify_all(operands[0].axes, value.axes)
    return [value.without_origin() for value in operands]


@rule("top_k")
def top_k(graph, equation, operand):
    """Returns positions along its axis."""
    axis = equation.params.get("axis", -1) % len(operand.axes)
    graph.pin(operand.axes[axis], "returns positions along the axis")
    results = []
    for variable in equation.outvars:
        axes = list(operand.axes)
        axes[axis] = graph.pinned(sizes(variable)[axis], "is ordered by size")
        results.append(Value(tuple(axes)))
    return results


@rule("rev")
def rev(graph, equation, operand):
    """Turns axes round."""
    for axis in equation.params["dimensions"]:
        graph.pin(operand.axes[axis], "turns the axis round")
    return [operand]
