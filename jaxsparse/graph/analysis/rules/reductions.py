"""Primitives that sum over axes, run along them, or look for the largest."""

import numpy as np

from jaxsparse.graph.analysis.constants import Constants, zeros_only
from jaxsparse.graph.analysis.registry import channels, constants, moved, sizes

_OTHERS = "reduce_max reduce_min reduce_prod reduce_and reduce_or reduce_xor"


@channels(f"reduce reduce_sum {_OTHERS}")
def reduction(graph, equation, *operands):
    """Drops axes: what is associative and commutative does not ask for the order."""
    kept = moved(equation)
    return [[operand[i] for i in kept] for operand in operands[: len(equation.outvars)]]


@constants("reduce_sum")
def reduce_sum_constants(walk, equation, known):
    """A sum over what is one number along another axis: as often that number."""
    gone = equation.params["axes"]
    count = int(np.prod([len(known.axes[i]) for i in gone], dtype=int))
    for i in gone:
        walk.need(walk.record.operands[0].axes[i], known.axes[i] != 0)
    return [Constants.of([known.axes[i] * count for i in moved(equation)], known.value * count)]


@constants(f"reduce argmax argmin {_OTHERS}")
def reduction_constants(walk, equation, known, *rest):
    """The largest of some numbers may well be one of the zeros."""
    kept, name = moved(equation), equation.primitive.name
    for value in walk.record.operands[: len(equation.outvars)]:
        for i, term in enumerate(value.axes):
            if i not in kept:
                walk.need(term, np.ones(walk.terms.size(term), bool))
    vectors = [known.axes[i] for i in kept]
    if name in ("reduce_max", "reduce_min", "reduce_and", "reduce_or"):
        return [Constants.of(vectors, known.value)]
    if name == "reduce_prod":
        return [Constants.of([*map(zeros_only, vectors)], 0 if known.value == 0 else np.nan)]
    return [Constants.nothing(sizes(variable)) for variable in equation.outvars]


@channels("argmax argmin")
def argmax(graph, equation, operand):
    """Positions along an axis depend on its order."""
    for axis in equation.params["axes"]:
        graph.pin(operand[axis], "returns positions along the axis")
    return [[operand[i] for i in moved(equation)]]


@channels("cumlogsumexp cummax cummin cumprod cumsum")
def cumulative(graph, equation, operand):
    """Depends on the order along its axis."""
    graph.pin(operand[equation.params["axis"]], "accumulates along the axis")
    return [operand]


@channels("sort")
def sort(graph, equation, *operands):
    """Depends on the order along its axis."""
    for operand in operands:
        graph.pin(operand[equation.params["dimension"]], "sorts along the axis")
        graph.unify_all(operands[0], operand)
    return operands


@constants("cumsum cumprod cummax cummin sort")
def along_an_axis(walk, equation, *operands):
    """Accumulating along one axis leaves what is zero along the others zero."""
    if len(operands) != 1:
        return [Constants.nothing(sizes(variable)) for variable in equation.outvars]
    params, name = equation.params, equation.primitive.name
    ordered = params["dimension"] if "dimension" in params else params["axis"]
    pick = (lambda v: v) if name in ("cummax", "cummin", "sort") else zeros_only
    axes = enumerate(operands[0].axes)
    return [Constants.of([np.full(v.size, np.nan) if i == ordered else pick(v) for i, v in axes])]


@channels("top_k")
def top_k(graph, equation, operand):
    """Returns positions along its axis."""
    axis = equation.params.get("axis", -1) % len(operand)
    graph.pin(operand[axis], "returns positions along the axis")
    results = []
    for variable in equation.outvars:
        results.append(list(operand))
        results[-1][axis] = graph.pinned(sizes(variable)[axis], "is ordered by size")
    return results


@channels("reduce_window reduce_window_max reduce_window_min reduce_window_sum")
def reduce_window(graph, equation, *operands):
    """Axes with a window of one pass; those pooled over are pinned."""
    params, shape = equation.params, sizes(equation.outvars[0])
    operands = operands[: len(equation.outvars)]
    axes = list(operands[0])
    for operand in operands[1:]:
        graph.unify_all(axes, operand)
    for i in range(len(shape)):
        plain = (params["window_dimensions"][i], params["window_strides"][i]) == (1, 1)
        if not plain or tuple(params["padding"][i]) != (0, 0) or params["base_dilation"][i] != 1:
            graph.pin(axes[i], "is pooled over")
            axes[i] = graph.pinned(shape[i], "is pooled over")
    return [axes for _ in operands]


@constants("reduce_window_max reduce_window_min reduce_window_sum")
def reduce_window_constants(walk, equation, known):
    """Pooling leaves what is one number along other axes one number."""
    params, windows = equation.params, equation.params["window_dimensions"]
    padded = any(low or high for low, high in params["padding"])
    spread = any(d != 1 for d in params["base_dilation"])
    count = int(np.prod(windows))
    if equation.primitive.name == "reduce_window_sum":
        pick = zeros_only if padded or spread else lambda v: v * count
    elif spread or any(max(p) >= n for p, n in zip(params["padding"], windows, strict=True)):
        return [Constants.nothing(sizes(equation.outvars[0]))]  # a window may lie outside
    else:
        pick = lambda v: v  # noqa: E731
    before, after = walk.record.operands[0].axes, walk.record.results[0].axes
    shape = sizes(equation.outvars[0])
    kept = [
        pick(vector) if a == b else np.full(size, np.nan)
        for vector, size, a, b in zip(known.axes, shape, before, after, strict=True)
    ]
    return [Constants.of(kept)]
