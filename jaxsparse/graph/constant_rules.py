"""What each primitive does to constants: one rule a primitive.

A rule gets the walk, the equation, the Constants of its operands and its record, notes
what of a summed axis is needed, and returns the Constants of its results.
"""

from collections.abc import Callable, Sequence

import numpy as np

from jaxsparse import jaxprs
from jaxsparse.graph.axes import along, others
from jaxsparse.graph.constants import Constants, agreed, as_float64
from jaxsparse.graph.folding import contribution
from jaxsparse.graph.rules import RULES, sizes
from jaxsparse.graph.rules.elementwise import elementwise
from jaxsparse.graph.rules.shapes import common_groups

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


def _zeros_only(vector):
    return np.where(vector == 0, 0, np.nan)


def _where_zero(zero):
    return np.where(zero, 0, np.nan)


def _dot_general(walk, equation, operands, record):
    left, right = operands
    (left_sum, right_sum), (left_batch, right_batch) = equation.params["dimension_numbers"]
    weight = walk.weight()
    for axes in zip(left_sum, right_sum, strict=True):
        vectors = [known.axes[axis] for known, axis in zip(operands, axes, strict=True)]
        term, adds = record.operands[0].axes[axes[0]], (vectors[0] != 0) & (vectors[1] != 0)
        if weight is not None:
            steady = np.isfinite(vectors[1 - weight])
            walk.owe(term, adds & steady)
            adds &= ~steady
        walk.need(term, adds)
    batch = [
        _where_zero((left.axes[i] == 0) | (right.axes[k] == 0))
        for i, k in zip(left_batch, right_batch, strict=True)
    ]
    free = [v for i, v in enumerate(left.axes) if i not in (*left_sum, *left_batch)]
    free += [v for i, v in enumerate(right.axes) if i not in (*right_sum, *right_batch)]
    zero = left.value == 0 or right.value == 0
    return [Constants.of([*batch, *map(_zeros_only, free)], 0 if zero else np.nan)]


def _conv_general_dilated(walk, equation, operands, record):
    """Only what a group sums over leaves here; the groups themselves go on to the result."""
    x, kernel = operands
    params = equation.params
    numbers, batch_groups = params["dimension_numbers"], params["batch_group_count"]
    groups = params["feature_group_count"]
    batch, into = numbers.lhs_spec[:2]
    outof, summed = numbers.rhs_spec[:2]
    by_group = x.axes[into].reshape(groups, -1)
    kernel_in, out_by_group = kernel.axes[summed] == 0, kernel.axes[outof].reshape(groups, -1) == 0
    silent_out = out_by_group.all(axis=1)
    adds = ~((by_group == 0) | kernel_in | silent_out[:, None])
    steady = np.isfinite(by_group) & (walk.weight() == 1)
    term = record.operands[1].axes[summed]
    if _sees_edges(params):
        text = "reads constants with padding around them: at the borders they add something else"
        walk.need(term, (adds & steady).any(axis=0), text)
    else:
        walk.owe(term, (adds & steady).any(axis=0))
    walk.need(term, (adds & ~steady).any(axis=0))
    silent = ((by_group == 0) | kernel_in).all(axis=1)
    examples = (x.axes[batch] == 0).reshape(batch_groups, -1)
    out = (out_by_group | silent[:, None]).reshape(batch_groups, -1)
    axes = [np.full(size, np.nan) for size in sizes(equation.outvars[0])]
    axes[numbers.out_spec[0]] = _where_zero(examples.all(axis=0))
    feature = numbers.out_spec[1]
    axes[feature] = _where_zero((out | examples.all(axis=1)[:, None]).ravel())
    known = (steady | kernel_in).all(axis=1) & ~silent
    if known.any() and not _sees_edges(params):
        values = np.where(np.isfinite(x.axes[into]), x.axes[into], 0)
        numbers_out = contribution(equation, 1, walk.array(1), {into: values}).ravel()
        chosen = np.repeat(known, len(numbers_out) // groups)
        axes[feature] = np.where(chosen, numbers_out, axes[feature])
    return [Constants.of(axes)]


def _sees_edges(params):
    """Whether a convolution of what is uniform in space is not: padding is zeros."""
    padded = any(low or high for low, high in params["padding"])
    return padded or any(d != 1 for d in params["lhs_dilation"]) or params["batch_group_count"] != 1


def _reduce_sum(walk, equation, operands, record):
    (known,), gone = operands, equation.params["axes"]
    count = int(np.prod([len(known.axes[i]) for i in gone], dtype=int))
    for i in gone:
        walk.need(record.operands[0].axes[i], known.axes[i] != 0)
    kept = [v * count for i, v in enumerate(known.axes) if i not in gone]
    return [Constants.of(kept, known.value * count)]


def _reduce_other(walk, equation, operands, record):
    """The largest of some numbers may well be one of the zeros."""
    params = equation.params
    gone = params["axes"] if "axes" in params else params["dimensions"]
    for value in record.operands[: len(equation.outvars)]:
        for i in gone:
            walk.need(value.axes[i], np.ones(walk.terms.size(value.axes[i]), bool))
    known, name = operands[0], equation.primitive.name
    kept = [v for i, v in enumerate(known.axes) if i not in gone]
    if name in ("reduce_max", "reduce_min", "reduce_and", "reduce_or"):
        return [Constants.of(kept, known.value)]
    if name == "reduce_prod":
        return [Constants.of([_zeros_only(v) for v in kept], 0 if known.value == 0 else np.nan)]
    return [Constants.nothing(sizes(variable)) for variable in equation.outvars]


def _broadcast_in_dim(walk, equation, operands, record):
    del walk, record
    known, shape = operands[0], sizes(equation.outvars[0])
    axes = [np.full(size, known.value) for size in shape]
    for vector, target in zip(known.axes, equation.params["broadcast_dimensions"], strict=True):
        axes[target] = np.broadcast_to(vector, shape[target]) if vector.size == 1 else vector
    return [Constants.of(axes, known.value)]


def _transpose(walk, equation, operands, record):
    del walk, record
    (known,) = operands
    return [Constants.of([known.axes[i] for i in equation.params["permutation"]], known.value)]


def _rev(walk, equation, operands, record):
    del walk, record
    (known,), turned = operands, equation.params["dimensions"]
    axes = [v[::-1] if i in turned else v for i, v in enumerate(known.axes)]
    return [Constants.of(axes, known.value)]


def _squeeze(walk, equation, operands, record):
    del walk, record
    (known,) = operands
    gone = [i % max(len(known.axes), 1) for i in equation.params["dimensions"]]
    return [Constants.of([v for i, v in enumerate(known.axes) if i not in gone], known.value)]


def _reshape(walk, equation, operands, record):
    del walk, record
    known, before, after = operands[0], sizes(equation.invars[0]), sizes(equation.outvars[0])
    axes = [np.full(size, known.value) for size in after]
    if 0 in after or equation.params["dimensions"] is not None:
        return [Constants.nothing(after)]
    for old, new in common_groups(before, after):
        if all(np.isnan(known.axes[i]).all() for i in old):
            continue
        grid = np.full([before[i] for i in old], np.nan)
        for k, i in enumerate(old):
            vector = along(k, len(old), known.axes[i])
            grid = np.where(np.isnan(vector), grid, vector)
        grid = grid.reshape([after[i] for i in new])
        for k, i in enumerate(new):
            low, high = (f(grid, axis=others(k, len(new))) for f in (np.min, np.max))
            axes[i] = np.where(low == high, low, np.nan)
    return [Constants.of(axes, known.value)]


def _concatenate(walk, equation, operands, record):
    del walk, record
    dimension = equation.params["dimension"]
    axes = []
    for i in range(len(operands[0].axes)):
        vectors = [known.axes[i] for known in operands]
        axes.append(np.concatenate(vectors) if i == dimension else agreed(vectors))
    return [Constants.of(axes)]


def _stack(walk, equation, operands, record):
    del walk, record
    axes = [agreed(vectors) for vectors in zip(*(known.axes for known in operands), strict=True)]
    axes.insert(equation.params["axis"], np.array([known.value for known in operands]))
    return [Constants.of(axes)]


def _unstack(walk, equation, operands, record):
    del walk, record
    (known,), gone = operands, equation.params["axis"]
    rest = [v for i, v in enumerate(known.axes) if i != gone]
    # A slice that is one number says so for itself only.
    return [Constants.of(rest, value) for value in known.axes[gone]]


def _split(walk, equation, operands, record):
    del walk, record
    (known,), axis = operands, equation.params["axis"]
    results, start = [], 0
    for size in equation.params["sizes"]:
        axes = list(known.axes)
        axes[axis] = axes[axis][start : start + size]
        results.append(Constants.of(axes, known.value))
        start += size
    return results


def _slice(walk, equation, operands, record):
    del walk, record
    (known,), params = operands, equation.params
    strides = params["strides"] or [1] * len(known.axes)
    spans = zip(params["start_indices"], params["limit_indices"], strides, strict=True)
    axes = [v[a:b:s] for v, (a, b, s) in zip(known.axes, spans, strict=True)]
    return [Constants.of(axes, known.value)]


def _pad(walk, equation, operands, record):
    del walk, record
    known, filling = operands
    widths = equation.params["padding_config"]
    if any(interior or low < 0 or high < 0 for low, high, interior in widths):
        return [Constants.nothing(sizes(equation.outvars[0]))]
    axes = []
    for i, (vector, (low, high, _)) in enumerate(zip(known.axes, widths, strict=True)):
        if any(low or high for k, (low, high, _) in enumerate(widths) if k != i):
            vector = np.where(vector == filling.value, vector, np.nan)
        ends = np.full(low, filling.value), np.full(high, filling.value)
        axes.append(np.concatenate([ends[0], vector, ends[1]]))
    return [Constants.of(axes)]


def _tile(walk, equation, operands, record):
    del walk, record
    (known,) = operands
    tiled = zip(known.axes, equation.params["reps"], strict=True)
    return [Constants.of([np.tile(vector, count) for vector, count in tiled], known.value)]


def _gather(walk, equation, operands, record):
    del walk
    result = record.results[0]
    axes = [np.full(size, np.nan) for size in sizes(equation.outvars[0])]
    numbers, taken = equation.params["dimension_numbers"], equation.params["slice_sizes"]
    fill = equation.params["fill_value"]
    gone = (*numbers.collapsed_slice_dims, *numbers.operand_batching_dims)
    whole = [i for i in range(len(operands[0].axes)) if i not in gone]
    for i, target in zip(whole, numbers.offset_dims, strict=True):
        vector = operands[0].axes[i]
        if taken[i] == len(vector) and result.axes[target] == record.operands[0].axes[i]:
            filled = fill is not None and np.isfinite(fill)
            axes[target] = np.where(vector == fill, vector, np.nan) if filled else vector
    return [Constants.of(axes)]


def _dynamic_slice(walk, equation, operands, record):
    del walk, record
    known, taken = operands[0], equation.params["slice_sizes"]
    axes = [
        v if v.size == n else np.full(n, known.value)
        for v, n in zip(known.axes, taken, strict=True)
    ]
    return [Constants.of(axes, known.value)]


def _dynamic_update_slice(walk, equation, operands, record):
    del walk, record
    axes = [
        agreed([v, written]) if v.size == written.size else np.full(v.size, np.nan)
        for v, written in zip(operands[0].axes, operands[1].axes, strict=True)
    ]
    return [Constants.of(axes)]


def _along_an_axis(walk, equation, operands, record):
    """Accumulating along one axis leaves what is zero along the others zero."""
    del walk, record
    if len(operands) != 1:
        return [Constants.nothing(sizes(variable)) for variable in equation.outvars]
    params, name = equation.params, equation.primitive.name
    ordered = params["dimension"] if "dimension" in params else params["axis"]
    pick = (lambda v: v) if name in ("cummax", "cummin", "sort") else _zeros_only
    axes = [
        np.full(v.size, np.nan) if i == ordered else pick(v) for i, v in enumerate(operands[0].axes)
    ]
    return [Constants.of(axes)]


def _reduce_window(walk, equation, operands, record):
    """Pooling leaves what is one number along other axes one number."""
    del walk
    params, windows = equation.params, equation.params["window_dimensions"]
    padded = any(low or high for low, high in params["padding"])
    spread = any(d != 1 for d in params["base_dilation"])
    count = int(np.prod(windows))
    if equation.primitive.name == "reduce_window_sum":
        pick = _zeros_only if padded or spread else lambda v: v * count
    elif spread or any(max(p) >= n for p, n in zip(params["padding"], windows, strict=True)):
        return [Constants.nothing(sizes(equation.outvars[0]))]  # a window may lie outside
    else:
        pick = lambda v: v  # noqa: E731
    kept = [
        pick(vector) if a == b else np.full(size, np.nan)
        for vector, size, a, b in zip(
            operands[0].axes,
            sizes(equation.outvars[0]),
            record.operands[0].axes,
            record.results[0].axes,
            strict=True,
        )
    ]
    return [Constants.of(kept)]


def _identity(walk, equation, operands, record):
    del walk, equation, record
    return operands


CONSTANT_RULES: dict[str, ConstantRule] = {
    **{name: _elementwise for name, rule in RULES.items() if rule is elementwise},
    "dot_general": _dot_general,
    "conv_general_dilated": _conv_general_dilated,
    "reduce_sum": _reduce_sum,
    **dict.fromkeys(
        ["reduce_max", "reduce_min", "reduce_prod", "reduce_and", "reduce_or", "reduce_xor"],
        _reduce_other,
    ),
    **dict.fromkeys(["reduce", "argmax", "argmin"], _reduce_other),
    "broadcast_in_dim": _broadcast_in_dim,
    "transpose": _transpose,
    "rev": _rev,
    "squeeze": _squeeze,
    "reshape": _reshape,
    "concatenate": _concatenate,
    "stack": _stack,
    "unstack": _unstack,
    "split": _split,
    "slice": _slice,
    "pad": _pad,
    "tile": _tile,
    "gather": _gather,
    "dynamic_slice": _dynamic_slice,
    "dynamic_update_slice": _dynamic_update_slice,
    **dict.fromkeys(["cumsum", "cumprod", "cummax", "cummin", "sort"], _along_an_axis),
    "reduce_window_sum": _reduce_window,
    "reduce_window_max": _reduce_window,
    "reduce_window_min": _reduce_window,
    **dict.fromkeys(
        ["optimization_barrier", "sharding_constraint", "reshard", "device_put"], _identity
    ),
}
