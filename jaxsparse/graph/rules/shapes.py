"""Primitives that build axes otherwise: products, sums, and their parts."""

from collections.abc import Sequence

from jaxsparse.graph.rules.registry import drop, exchange, rule, sizes
from jaxsparse.graph.values import Value


@rule("transpose")
def transpose(graph, equation, operand):
    """Axes in another order."""
    del graph
    order = equation.params["permutation"]
    return [operand.pick([operand.axes[i] for i in order], [[i] for i in order])]


@rule("squeeze")
def squeeze(graph, equation, operand):
    """Drops axes of size 1."""
    del graph
    return [drop(operand, equation.params["dimensions"])]


@rule("broadcast_in_dim")
def broadcast_in_dim(graph, equation, operand, *dynamic):
    """New axes are uniform: any order will do for them."""
    del dynamic
    shape = sizes(equation.outvars[0])
    axes: list[int | None] = [None] * len(shape)
    sources: list[list[int]] = [[] for _ in shape]
    for i, target in enumerate(equation.params["broadcast_dimensions"]):
        if graph.terms.size(operand.axes[i]) == shape[target]:
            axes[target], sources[target] = operand.axes[i], [i]
    terms = [graph.terms.atom(n) if a is None else a for a, n in zip(axes, shape, strict=True)]
    return [operand.pick(terms, sources)]


@rule("tile")
def tile(graph, equation, operand):
    """Repeats: the product of a uniform axis and the axis."""
    axes = [
        graph.terms.product([graph.terms.atom(count), axis])
        for count, axis in zip(equation.params["reps"], operand.axes, strict=True)
    ]
    return [operand.pick(axes, [[i] for i in range(len(axes))])]


@rule("reshape")
def reshape(graph, equation, operand, *dynamic):
    """Products: axes of one side are matched with those of the other, major to minor."""
    shape = sizes(equation.outvars[0])
    before = sizes(equation.invars[0])
    if dynamic or equation.params["dimensions"] is not None or 0 in shape:
        return graph.unknown(equation, [operand], "reshapes in another order")
    axes = [graph.terms.atom(size) for size in shape]
    sources: list[list[int]] = [[] for _ in shape]
    for old, new in common_groups(before, shape):
        merged = graph.terms.product([operand.axes[i] for i in old])
        split = graph.terms.product([axes[i] for i in new])
        graph.unify(merged, split, f"cuts {before} to {shape} across the channels")
        for i in new:
            sources[i] = old
    return [operand.pick(axes, sources)]


def common_groups(before: Sequence[int], after: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """Smallest runs of axes with equal products on both sides; size 1 is left out.

    >>> common_groups((2, 3, 12), (6, 4, 1, 3))
    [([0, 1], [0]), ([2], [1, 3])]
    """
    left = [i for i, size in enumerate(before) if size != 1][::-1]
    right = [i for i, size in enumerate(after) if size != 1][::-1]
    groups = []
    while left and right:
        old, new = [left.pop()], [right.pop()]
        a, b = before[old[0]], after[new[0]]
        while a != b:
            if a < b:
                old.append(left.pop())
                a *= before[old[-1]]
            else:
                new.append(right.pop())
                b *= after[new[-1]]
        groups.append((old, new))
    return groups


@rule("concatenate")
def concatenate(graph, equation, *operands):
    """The sum of the axes that follow one another."""
    along = equation.params["dimension"]
    axes = list(operands[0].axes)
    for value in operands[1:]:
        graph.unify_all(
            [a for i, a in enumerate(axes) if i != along],
            [a for i, a in enumerate(value.axes) if i != along],
        )
    axes[along] = graph.terms.sum([value.axes[along] for value in operands])
    return [Value(tuple(axes))]


@rule("stack")
def stack(graph, equation, *operands):
    """Puts arrays side by side along a new axis, in their order."""
    axes = list(operands[0].axes)
    for value in operands[1:]:
        graph.unify_all(axes, value.axes)
    axes.insert(equation.params["axis"], graph.pinned(len(operands), "puts arrays in order"))
    return [Value(tuple(axes))]


@rule("unstack")
def unstack(graph, equation, operand):
    """Takes an axis apart."""
    axis = equation.params["axis"]
    graph.pin(operand.axes[axis], "takes the axis apart")
    return [drop(operand, [axis]) for _ in equation.outvars]


@rule("split")
def split(graph, equation, operand):
    """Undoes a concatenation."""
    along = equation.params["axis"]
    parts = [graph.terms.atom(sizes(variable)[along]) for variable in equation.outvars]
    graph.unify(operand.axes[along], graph.terms.sum(parts))
    return [exchange(operand, along, part) for part in parts]


@rule("slice")
def slice_(graph, equation, operand):
    """Parts of sums; with a stride the axis is pinned."""
    params, result = equation.params, operand
    for i, axis in enumerate(operand.axes):
        start, limit = params["start_indices"][i], params["limit_indices"][i]
        size, stride = graph.terms.size(axis), (params["strides"] or [1] * (i + 1))[i]
        if stride != 1:
            graph.pin(axis, f"takes every {stride}th position")
            taken = graph.pinned(sizes(equation.outvars[0])[i], "is a strided slice")
        elif limit - start == size:
            continue
        else:
            taken = graph.terms.atom(limit - start)
            ends = graph.terms.atom(start), graph.terms.atom(size - limit)
            graph.unify(axis, graph.terms.sum([ends[0], taken, ends[1]]))
        result = exchange(result, i, taken)
    return [result]


@rule("pad")
def pad(graph, equation, operand, filling):
    """Padding is uniform, so it is a term of a sum."""
    del filling
    result = operand.without_origin()
    for i, (low, high, interior) in enumerate(equation.params["padding_config"]):
        axis = operand.axes[i]
        if (low, high, interior) == (0, 0, 0):
            continue
        if low < 0 or high < 0 or interior:
            graph.pin(axis, f"pads the axis by {low, high, interior}")
            padded = graph.pinned(sizes(equation.outvars[0])[i], "is padded")
        else:
            padded = graph.terms.sum([graph.terms.atom(low), axis, graph.terms.atom(high)])
        result = exchange(result, i, padded)
    return [result]
