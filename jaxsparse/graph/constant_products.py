"""What products, reductions and pooling do to constants, and what they need of a summed axis."""

import numpy as np

from jaxsparse.graph.constants import Constants, where_zero, zeros_only
from jaxsparse.graph.folding import contribution
from jaxsparse.graph.rules import sizes


def dot_general(walk, equation, operands, record):
    """Zero where a factor is; constants times a weight may go into a bias."""
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
        where_zero((left.axes[i] == 0) | (right.axes[k] == 0))
        for i, k in zip(left_batch, right_batch, strict=True)
    ]
    free = [v for i, v in enumerate(left.axes) if i not in (*left_sum, *left_batch)]
    free += [v for i, v in enumerate(right.axes) if i not in (*right_sum, *right_batch)]
    zero = left.value == 0 or right.value == 0
    return [Constants.of([*batch, *map(zeros_only, free)], 0 if zero else np.nan)]


def conv_general_dilated(walk, equation, operands, record):
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
    axes[numbers.out_spec[0]] = where_zero(examples.all(axis=0))
    feature = numbers.out_spec[1]
    axes[feature] = where_zero((out | examples.all(axis=1)[:, None]).ravel())
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


def reduce_sum(walk, equation, operands, record):
    """A sum over what is one number along another axis: as often that number."""
    (known,), gone = operands, equation.params["axes"]
    count = int(np.prod([len(known.axes[i]) for i in gone], dtype=int))
    for i in gone:
        walk.need(record.operands[0].axes[i], known.axes[i] != 0)
    kept = [v * count for i, v in enumerate(known.axes) if i not in gone]
    return [Constants.of(kept, known.value * count)]


def reduce_other(walk, equation, operands, record):
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
        return [Constants.of([zeros_only(v) for v in kept], 0 if known.value == 0 else np.nan)]
    return [Constants.nothing(sizes(variable)) for variable in equation.outvars]


def reduce_window(walk, equation, operands, record):
    """Pooling leaves what is one number along other axes one number."""
    del walk
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
