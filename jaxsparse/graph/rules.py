"""What each primitive does to channels: one rule a primitive.

A rule gets the analysis, the equation and a Value for every operand, unifies and
pins terms, and returns a Value for every result. The promise of a rule: if all
free atoms are permuted, in the operands as in the results, the primitive still
maps the ones to the others. A primitive without a rule pins all that it touches.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jaxsparse.graph.values import Origin, Value

Rule = Callable[..., Sequence[Value]]

RULES: dict[str, Rule] = {}

_ELEMENTWISE = """
    abs acos acosh add add_any and asin asinh atan atan2 atanh bessel_i0e bessel_i1e cbrt ceil
    clamp clz complex conj convert_element_type copy copy_p cos cosh digamma div eq eq_to erf
    erf_inv erfc exp exp2 expm1 floor ge gt igamma igammac imag integer_pow is_finite le le_to
    lgamma log log1p log2 logistic lt lt_to max min mul mulhi name ne neg nextafter not
    one_minus_square or polygamma polynomial population_count pow real reduce_precision
    regularized_incomplete_beta rem round rsqrt select_n shift_left shift_right_arithmetic
    shift_right_logical sign sin sinh sqrt square stop_gradient sub tan tanh xor zeta
"""
# One result for every operand, each as its operand is.
_IDENTITIES = """
    device_put optimization_barrier reshard sharding_constraint layout_constraint pvary
"""
_REDUCTIONS = """
    reduce_and reduce_max reduce_min reduce_or reduce_prod reduce_sum reduce_xor
"""
# The result depends on the order along one axis.
_ORDERED = "cumlogsumexp cummax cummin cumprod cumsum"


def rule(names: str) -> Callable[[Rule], Rule]:
    """Enters a function into RULES under some names."""

    def enter(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(names.split(), function))
        return function

    return enter


def sizes(variable: Any) -> tuple[int, ...]:
    """Shape of a variable of a jaxpr."""
    return tuple(variable.aval.shape)


@rule(_ELEMENTWISE)
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


@rule(_IDENTITIES)
def identity(graph, equation, *operands):
    """Hands through."""
    del graph, equation
    return operands


@rule("bitcast_convert_type")
def bitcast_convert_type(graph, equation, operand):
    """Elementwise unless one number becomes several."""
    if sizes(equation.invars[0]) != sizes(equation.outvars[0]):
        return graph.unknown(equation, [operand], "cuts numbers into bytes")
    return [operand.without_origin()]


@rule("iota")
def iota(graph, equation, *operands):
    """Numbers along one axis, whose order they say; uniform along the others."""
    del operands
    axes = tuple(graph.terms.atom(size) for size in equation.params["shape"])
    graph.pin(axes[equation.params["dimension"]], "numbers the positions of the axis")
    return [Value(axes)]


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
    return [_drop(operand, equation.params["dimensions"])]


@rule(_REDUCTIONS)
def reduction(graph, equation, operand):
    """Drops axes: a sum does not ask for the order."""
    del graph
    return [_drop(operand, equation.params["axes"])]


@rule("reduce")
def reduce(graph, equation, *operands):
    """A reduction by any associative and commutative function."""
    del graph
    arrays = operands[: len(equation.outvars)]
    return [_drop(value, equation.params["dimensions"]).without_origin() for value in arrays]


@rule("argmax argmin")
def argmax(graph, equation, operand):
    """Positions along an axis depend on its order."""
    for axis in equation.params["axes"]:
        graph.pin(operand.axes[axis], "returns positions along the axis")
    return [_drop(operand, equation.params["axes"]).without_origin()]


def _drop(value, axes):
    kept = [i for i in range(len(value.axes)) if i not in axes]
    return value.pick([value.axes[i] for i in kept], [[i] for i in kept])


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


@rule("split")
def split(graph, equation, operand):
    """Undoes a concatenation."""
    along = equation.params["axis"]
    parts = [graph.terms.atom(sizes(variable)[along]) for variable in equation.outvars]
    graph.unify(operand.axes[along], graph.terms.sum(parts))
    return [_exchange(operand, along, part) for part in parts]


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
        result = _exchange(result, i, taken)
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
        result = _exchange(result, i, padded)
    return [result]


def _exchange(value, i, term):
    axes = [*value.axes[:i], term, *value.axes[i + 1 :]]
    return value.pick(axes, [[k] for k in range(len(axes))])


@rule("dynamic_slice")
def dynamic_slice(graph, equation, operand, *starts):
    """Whole axes pass; of the others some positions are taken, so they are pinned."""
    del starts
    result = operand
    for i, size in enumerate(equation.params["slice_sizes"]):
        if size != graph.terms.size(operand.axes[i]):
            graph.pin(operand.axes[i], "takes positions of the axis")
            result = _exchange(result, i, graph.pinned(size, "is part of an axis"))
    return [result]


@rule("dynamic_update_slice")
def dynamic_update_slice(graph, equation, operand, update, *starts):
    """Whole axes pass; those written to in part are pinned."""
    del equation, starts
    for axis, written in zip(operand.axes, update.axes, strict=True):
        if graph.terms.size(axis) == graph.terms.size(written):
            graph.unify(axis, written)
        else:
            graph.pin(axis, "is written to at some positions")
            graph.pin(written, "is written to some positions")
    return [operand.without_origin()]


@rule("gather")
def gather(graph, equation, operand, indices):
    """Axes taken whole pass (the features of an embedding), indexed ones are pinned."""
    numbers, taken = equation.params["dimension_numbers"], equation.params["slice_sizes"]
    shape = sizes(equation.outvars[0])
    graph.pin(indices.axes[-1], "is an index")
    batch = [i for i in range(len(shape)) if i not in numbers.offset_dims]
    axes: dict[int, int] = dict(zip(batch, indices.axes[:-1], strict=True))
    gone = (*numbers.collapsed_slice_dims, *numbers.operand_batching_dims)
    whole = [i for i in range(len(operand.axes)) if i not in gone]
    for i, target in zip(whole, numbers.offset_dims, strict=True):
        if taken[i] == graph.terms.size(operand.axes[i]) and i not in numbers.start_index_map:
            axes[target] = operand.axes[i]
        else:
            graph.pin(operand.axes[i], "is indexed")
            axes[target] = graph.pinned(shape[target], "is part of an indexed axis")
    for i in numbers.collapsed_slice_dims:
        graph.pin(operand.axes[i], "is indexed")
    for i, k in zip(
        numbers.operand_batching_dims, numbers.start_indices_batching_dims, strict=True
    ):
        graph.unify(operand.axes[i], indices.axes[k])
    return [Value(tuple(axes[i] for i in range(len(shape))))]


@rule("scatter scatter-add scatter-max scatter-min scatter-mul scatter-sub")
def scatter(graph, equation, operand, indices, updates):
    """Axes written whole pass, those written at some positions are pinned."""
    numbers = equation.params["dimension_numbers"]
    graph.pin(indices.axes[-1], "is an index")
    gone = (*numbers.inserted_window_dims, *numbers.operand_batching_dims)
    whole = [i for i in range(len(operand.axes)) if i not in gone]
    for i, k in zip(whole, numbers.update_window_dims, strict=True):
        same = graph.terms.size(operand.axes[i]) == graph.terms.size(updates.axes[k])
        if same and i not in numbers.scatter_dims_to_operand_dims:
            graph.unify(operand.axes[i], updates.axes[k])
        else:
            graph.pin(operand.axes[i], "is written to at some positions")
            graph.pin(updates.axes[k], "is written to some positions")
    for i in numbers.inserted_window_dims:
        graph.pin(operand.axes[i], "is written to at some positions")
    batch = [k for k in range(len(updates.axes)) if k not in numbers.update_window_dims]
    for k, axis in zip(batch, indices.axes[:-1], strict=True):
        # Where two updates meet, the last may win.
        graph.pin(updates.axes[k], "is a list of updates in their order")
        graph.pin(axis, "is a list of updates in their order")
    for i, k in zip(
        numbers.operand_batching_dims, numbers.scatter_indices_batching_dims, strict=True
    ):
        graph.unify(operand.axes[i], indices.axes[k])
    return [operand.without_origin()]


@rule("dot_general")
def dot_general(graph, equation, left, right):
    """What is summed over and what is a batch are the same channels on both sides."""
    (left_sum, right_sum), (left_batch, right_batch) = equation.params["dimension_numbers"]
    for i, k in zip((*left_sum, *left_batch), (*right_sum, *right_batch), strict=True):
        graph.unify(left.axes[i], right.axes[k])
    left_free = [i for i in range(len(left.axes)) if i not in (*left_sum, *left_batch)]
    right_free = [i for i in range(len(right.axes)) if i not in (*right_sum, *right_batch)]
    for value, summed, free in ((left, left_sum, left_free), (right, right_sum, right_free)):
        graph.product_with(value, summed, free)
    return [
        Value(
            (
                *(left.axes[i] for i in left_batch),
                *(left.axes[i] for i in left_free),
                *(right.axes[i] for i in right_free),
            )
        )
    ]


@rule("conv_general_dilated")
def conv_general_dilated(graph, equation, x, kernel):
    """Channels in and out; the groups of a grouped convolution are a factor of both."""
    params, terms = equation.params, graph.terms
    if params["batch_group_count"] != 1:
        return graph.unknown(equation, [x, kernel], "has groups in the batch")
    numbers, shape = params["dimension_numbers"], sizes(equation.outvars[0])
    batch, into, *places = numbers.lhs_spec
    out_features, in_features, *window = numbers.rhs_spec
    for value, axes in ((x, places), (kernel, window)):
        for i in axes:
            graph.pin(value.axes[i], "is a spatial axis")
    groups = params["feature_group_count"]
    group = terms.atom(groups)
    each = terms.atom(terms.size(kernel.axes[out_features]) // groups)
    graph.unify(x.axes[into], terms.product([group, kernel.axes[in_features]]))
    graph.unify(kernel.axes[out_features], terms.product([group, each]))
    graph.product_with(kernel, [in_features], [out_features], depthwise=groups > 1)
    axes = [graph.pinned(size, "is a spatial axis") for size in shape]
    axes[numbers.out_spec[0]] = x.axes[batch]
    axes[numbers.out_spec[1]] = kernel.axes[out_features]
    return [Value(tuple(axes))]


@rule("reduce_window reduce_window_max reduce_window_min reduce_window_sum")
def reduce_window(graph, equation, *operands):
    """Axes with a window of one pass; those pooled over are pinned."""
    params, shape = equation.params, sizes(equation.outvars[0])
    operands = operands[: len(equation.outvars)]
    axes = list(operands[0].axes)
    for value in operands[1:]:
        graph.unify_all(axes, value.axes)
    for i in range(len(shape)):
        plain = (params["window_dimensions"][i], params["window_strides"][i]) == (1, 1)
        if not plain or tuple(params["padding"][i]) != (0, 0) or params["base_dilation"][i] != 1:
            graph.pin(axes[i], "is pooled over")
            axes[i] = graph.pinned(shape[i], "is pooled over")
    return [Value(tuple(axes)) for _ in operands]


def uniform_axes(constant: Any) -> list[bool]:
    """For every axis of a constant whether all its slices are equal."""
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
