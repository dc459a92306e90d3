"""Primitives that put axes together one after the other, and take them apart: sums."""

import numpy as np
from jax import lax

from jaxsparse.graph.analysis.constants import Constants, agreed
from jaxsparse.graph.analysis.registry import channels, constants, sizes, smaller


@channels("concatenate")
def concatenate(graph, equation, *operands):
    """The sum of the axes that follow one another."""
    along, (first, *rest) = equation.params["dimension"], operands
    for operand in rest:
        for i, (one, other) in enumerate(zip(first, operand, strict=True)):
            if i != along:
                graph.unify(one, other)
    axes = list(first)
    axes[along] = graph.terms.sum([operand[along] for operand in operands])
    return [axes]


@constants("concatenate")
def concatenate_constants(walk, equation, *operands):
    """Along one axis one after the other; along the others what all agree on."""
    axes = []
    for i in range(len(operands[0].axes)):
        vectors = [known.axes[i] for known in operands]
        along = i == equation.params["dimension"]
        axes.append(np.concatenate(vectors) if along else agreed(vectors))
    return [Constants.of(axes)]


@channels("stack")
def stack(graph, equation, *operands):
    """Puts arrays side by side along a new axis, in their order."""
    axes = list(operands[0])
    for operand in operands[1:]:
        graph.unify_all(axes, operand)
    axes.insert(equation.params["axis"], graph.pinned(len(operands), "puts arrays in order"))
    return [axes]


@constants("stack")
def stack_constants(walk, equation, *operands):
    """A new axis, of whole arrays."""
    axes = [agreed(vectors) for vectors in zip(*(known.axes for known in operands), strict=True)]
    axes.insert(equation.params["axis"], np.array([known.value for known in operands]))
    return [Constants.of(axes)]


@channels("unstack")
def unstack(graph, equation, operand):
    """Takes an axis apart."""
    axis = equation.params["axis"]
    graph.pin(operand[axis], "takes the axis apart")
    return [[*operand[:axis], *operand[axis + 1 :]] for _ in equation.outvars]


@constants("unstack")
def unstack_constants(walk, equation, known):
    """A slice that is one number says so for itself only."""
    gone = equation.params["axis"]
    rest = [v for i, v in enumerate(known.axes) if i != gone]
    return [Constants.of(rest, value) for value in known.axes[gone]]


@channels("split")
def split(graph, equation, operand):
    """Undoes a concatenation."""
    along = equation.params["axis"]
    parts = [graph.terms.atom(sizes(variable)[along]) for variable in equation.outvars]
    graph.unify(operand[along], graph.terms.sum(parts))
    return [[*operand[:along], part, *operand[along + 1 :]] for part in parts]


@constants("split")
def split_constants(walk, equation, known):
    """Parts of an axis."""
    axis, ends = equation.params["axis"], np.cumsum(equation.params["sizes"])
    parts = np.split(known.axes[axis], ends[:-1])
    before, after = known.axes[:axis], known.axes[axis + 1 :]
    return [Constants.of([*before, part, *after], known.value) for part in parts]


@smaller("split")
def smaller_split(rewriter, equation, operand):
    """In smaller parts."""
    axis = equation.params["axis"]
    parts = [
        rewriter.kept.size(value.axes[axis], size)
        for value, size in zip(rewriter.record.results, equation.params["sizes"], strict=True)
    ]
    return list(lax.split(operand, parts, axis))


@channels("slice")
def slice_(graph, equation, operand):
    """Parts of sums; with a stride the axis is pinned."""
    params, result = equation.params, list(operand)
    for i, axis in enumerate(operand):
        start, limit = params["start_indices"][i], params["limit_indices"][i]
        size, stride = graph.terms.size(axis), (params["strides"] or [1] * (i + 1))[i]
        if stride != 1:
            graph.pin(axis, f"takes every {stride}th position")
            result[i] = graph.pinned(sizes(equation.outvars[0])[i], "is a strided slice")
        elif limit - start != size:
            result[i] = graph.terms.atom(limit - start)
            ends = graph.terms.atom(start), graph.terms.atom(size - limit)
            graph.unify(axis, graph.terms.sum([ends[0], result[i], ends[1]]))
    return [result]


@constants("slice")
def slice_constants(walk, equation, known):
    """Positions of every axis."""
    params = equation.params
    strides = params["strides"] or [1] * len(known.axes)
    spans = zip(params["start_indices"], params["limit_indices"], strides, strict=True)
    axes = [v[a:b:s] for v, (a, b, s) in zip(known.axes, spans, strict=True)]
    return [Constants.of(axes, known.value)]


@smaller("slice")
def smaller_slice(rewriter, equation, operand):
    """From and to the places where the positions have gone."""
    params = equation.params
    starts, limits = [], []
    spans = zip(params["start_indices"], params["limit_indices"], strict=True)
    for term, span in zip(rewriter.record.operands[0].axes, spans, strict=True):
        left = rewriter.kept.vector(term)
        before = np.concatenate([[0], np.cumsum(left)])
        start, limit = span if left.all() else (int(before[i]) for i in span)
        starts.append(start)
        limits.append(limit)
    return lax.slice(operand, starts, limits, params["strides"])


@channels("pad")
def pad(graph, equation, operand, filling):
    """Padding is uniform, so it is a term of a sum."""
    result = list(operand)
    for i, (low, high, interior) in enumerate(equation.params["padding_config"]):
        if low < 0 or high < 0 or interior:
            graph.pin(operand[i], f"pads the axis by {low, high, interior}")
            result[i] = graph.pinned(sizes(equation.outvars[0])[i], "is padded")
        elif low or high:
            ends = graph.terms.atom(low), graph.terms.atom(high)
            result[i] = graph.terms.sum([ends[0], operand[i], ends[1]])
    return [result]


@constants("pad")
def pad_constants(walk, equation, known, filling):
    """Slices of padding are what it is filled with; the others have it at their ends."""
    widths = equation.params["padding_config"]
    if any(interior or low < 0 or high < 0 for low, high, interior in widths):
        return [Constants.nothing(sizes(equation.outvars[0]))]
    axes = []
    for i, (vector, (low, high, _)) in enumerate(zip(known.axes, widths, strict=True)):
        if any(low or high for k, (low, high, _) in enumerate(widths) if k != i):
            vector = np.where(vector == filling.value, vector, np.nan)
        axes.append(np.pad(vector, (low, high), constant_values=filling.value))
    return [Constants.of(axes)]


@smaller("pad")
def smaller_pad(rewriter, equation, operand, filling):
    """With as much padding as is left."""
    widths = []
    for term, (low, high, interior) in zip(
        rewriter.record.results[0].axes, equation.params["padding_config"], strict=True
    ):
        left = rewriter.kept.vector(term)
        if not left.all():
            # With a positive width the padding is a term of its own.
            low = int(left[:low].sum()) if low > 0 else low
            high = int(left[len(left) - high :].sum()) if high > 0 else high
        widths.append((low, high, interior))
    return lax.pad(operand, filling, widths)
