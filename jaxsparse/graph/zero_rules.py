"""What each primitive does to zeros: one rule a primitive.

A rule gets the walk, the equation, the Zeros of its operands and its record, notes
what of a summed axis is needed, and returns the Zeros of its results.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jaxsparse import jaxprs
from jaxsparse.graph.axes import along, others
from jaxsparse.graph.rules import RULES, sizes
from jaxsparse.graph.rules.elementwise import elementwise
from jaxsparse.graph.rules.shapes import common_groups
from jaxsparse.graph.zeros import Zeros

ZeroRule = Callable[..., Sequence[Zeros]]


def _elementwise(walk, equation, operands, record):
    del walk, record
    return [_mapped(equation, operands)]


def _mapped(equation, operands):
    shape, name = sizes(equation.outvars[0]), equation.primitive.name
    spread = [_spread(zeros, shape) for zeros in operands]
    if all(zeros.value is not None for zeros in operands):
        value = np.asarray(_evaluate(equation, [zeros.value for zeros in operands]))
        return Zeros.of([np.zeros(size, bool) for size in shape], value[()])
    if name in ("mul", "and"):
        return Zeros.of([np.logical_or.reduce(vectors) for vectors in zip(*spread, strict=True)])
    if name == "div":
        return Zeros.of(spread[0])
    if name == "select_n":
        cases = spread[1:]
        return Zeros.of([np.logical_and.reduce(vectors) for vectors in zip(*cases, strict=True)])
    unknown = [v for v, zeros in zip(spread, operands, strict=True) if zeros.value is None]
    at_zero = _evaluate(equation, [0 if z.value is None else z.value for z in operands])
    if not np.asarray(at_zero == 0).all():
        return Zeros.nothing(shape)
    return Zeros.of([np.logical_and.reduce(vectors) for vectors in zip(*unknown, strict=True)])


def _evaluate(equation, numbers):
    """The primitive on single numbers."""
    dtypes = [variable.aval.dtype for variable in equation.invars]
    scalars = [np.asarray(x).astype(dtype) for x, dtype in zip(numbers, dtypes, strict=True)]
    return np.asarray(jaxprs.bind(equation, scalars)[0])


def _spread(zeros, shape):
    """Vectors of an operand as broadcast to a shape."""
    if not zeros.axes:
        everywhere = zeros.value is not None and zeros.value == 0
        return [np.full(size, everywhere) for size in shape]
    return [
        np.broadcast_to(vector, size) if vector.size == 1 else vector
        for vector, size in zip(zeros.axes, shape, strict=True)
    ]


def _dot_general(walk, equation, operands, record):
    left, right = operands
    (left_sum, right_sum), (left_batch, right_batch) = equation.params["dimension_numbers"]
    for i, k in zip(left_sum, right_sum, strict=True):
        walk.need(record.operands[0].axes[i], ~(left.axes[i] | right.axes[k]))
    batch = [left.axes[i] | right.axes[k] for i, k in zip(left_batch, right_batch, strict=True)]
    free = [v for i, v in enumerate(left.axes) if i not in (*left_sum, *left_batch)]
    free += [v for i, v in enumerate(right.axes) if i not in (*right_sum, *right_batch)]
    zero = left.value == 0 or right.value == 0
    return [Zeros.of([*batch, *free], 0 if zero else None)]


def _conv_general_dilated(walk, equation, operands, record):
    """Only what a group sums over leaves here; the groups themselves go on to the result."""
    x, kernel = operands
    params = equation.params
    numbers, batch_groups = params["dimension_numbers"], params["batch_group_count"]
    groups = params["feature_group_count"]
    batch, into = numbers.lhs_spec[:2]
    outof, summed = numbers.rhs_spec[:2]
    kernel_in, in_by_group = kernel.axes[summed], x.axes[into].reshape(groups, -1)
    out_by_group = kernel.axes[outof].reshape(groups, -1)
    nothing_out = out_by_group.all(axis=1)
    adds = ~(in_by_group | kernel_in | nothing_out[:, None])
    walk.need(record.operands[1].axes[summed], adds.any(axis=0))
    silent = (in_by_group | kernel_in).all(axis=1)
    examples = x.axes[batch].reshape(batch_groups, -1)
    out = (out_by_group | silent[:, None]).reshape(batch_groups, -1)
    axes = [np.zeros(size, bool) for size in sizes(equation.outvars[0])]
    axes[numbers.out_spec[0]] = examples.all(axis=0)
    axes[numbers.out_spec[1]] = (out | examples.all(axis=1)[:, None]).ravel()
    return [Zeros.of(axes)]


def _rev(walk, equation, operands, record):
    del walk, record
    (zeros,), turned = operands, equation.params["dimensions"]
    axes = [v[::-1] if i in turned else v for i, v in enumerate(zeros.axes)]
    return [Zeros.of(axes, zeros.value)]


def _reduce_sum(walk, equation, operands, record):
    (zeros,), gone = operands, equation.params["axes"]
    for i in gone:
        walk.need(record.operands[0].axes[i], ~zeros.axes[i])
    return [Zeros.of([v for i, v in enumerate(zeros.axes) if i not in gone], _zero(zeros))]


def _reduce_other(walk, equation, operands, record):
    """The largest of some numbers may well be one of the zeros."""
    params = equation.params
    gone = params["axes"] if "axes" in params else params["dimensions"]
    for value in record.operands[: len(equation.outvars)]:
        for i in gone:
            walk.need(value.axes[i], np.ones(walk.terms.size(value.axes[i]), bool))
    if equation.primitive.name not in ("reduce_max", "reduce_min", "reduce_prod"):
        return [Zeros.nothing(sizes(variable)) for variable in equation.outvars]
    (zeros,) = operands
    return [Zeros.of([v for i, v in enumerate(zeros.axes) if i not in gone], _zero(zeros))]


def _zero(zeros):
    return 0 if zeros.value is not None and zeros.value == 0 else None


def _broadcast_in_dim(walk, equation, operands, record):
    del walk, record
    zeros, shape = operands[0], sizes(equation.outvars[0])
    axes = [np.zeros(size, bool) for size in shape]
    for vector, target in zip(zeros.axes, equation.params["broadcast_dimensions"], strict=True):
        axes[target] = np.broadcast_to(vector, shape[target]) if vector.size == 1 else vector
    return [Zeros.of(axes, zeros.value)]


def _transpose(walk, equation, operands, record):
    del walk, record
    (zeros,) = operands
    return [Zeros.of([zeros.axes[i] for i in equation.params["permutation"]], zeros.value)]


def _squeeze(walk, equation, operands, record):
    del walk, record
    (zeros,) = operands
    gone = [i % max(len(zeros.axes), 1) for i in equation.params["dimensions"]]
    return [Zeros.of([v for i, v in enumerate(zeros.axes) if i not in gone], zeros.value)]


def _reshape(walk, equation, operands, record):
    del walk, record
    zeros, before, after = operands[0], sizes(equation.invars[0]), sizes(equation.outvars[0])
    axes: list[Any] = [np.zeros(size, bool) for size in after]
    if 0 in after or equation.params["dimensions"] is not None:
        return [Zeros.nothing(after)]
    for old, new in common_groups(before, after):
        if not any(zeros.axes[i].any() for i in old):
            continue
        grid = np.zeros([before[i] for i in old], bool)
        for k, i in enumerate(old):
            grid |= along(k, len(old), zeros.axes[i])
        grid = grid.reshape([after[i] for i in new])
        for k, i in enumerate(new):
            axes[i] = grid.all(axis=others(k, len(new)))
    return [Zeros.of(axes, zeros.value)]


def _concatenate(walk, equation, operands, record):
    del walk, record
    dimension = equation.params["dimension"]
    axes = []
    for i in range(len(operands[0].axes)):
        vectors = [zeros.axes[i] for zeros in operands]
        axes.append(np.concatenate(vectors) if i == dimension else np.logical_and.reduce(vectors))
    return [Zeros.of(axes)]


def _stack(walk, equation, operands, record):
    del walk, record
    vectors = zip(*(zeros.axes for zeros in operands), strict=True)
    axes = [np.logical_and.reduce(v) for v in vectors]
    axes.insert(equation.params["axis"], np.array([_zero(z) == 0 for z in operands]))
    return [Zeros.of(axes)]


def _unstack(walk, equation, operands, record):
    del walk, record
    (zeros,), gone = operands, equation.params["axis"]
    rest = [v for i, v in enumerate(zeros.axes) if i != gone]
    # A slice that is zero says so for itself only.
    return [
        Zeros.of([v | whole for v in rest], 0 if whole else zeros.value)
        for whole in zeros.axes[gone]
    ]


def _split(walk, equation, operands, record):
    del walk, record
    (zeros,), axis = operands, equation.params["axis"]
    results, start = [], 0
    for size in equation.params["sizes"]:
        axes = list(zeros.axes)
        axes[axis] = axes[axis][start : start + size]
        results.append(Zeros.of(axes, zeros.value))
        start += size
    return results


def _slice(walk, equation, operands, record):
    del walk, record
    (zeros,), params = operands, equation.params
    strides = params["strides"] or [1] * len(zeros.axes)
    spans = zip(params["start_indices"], params["limit_indices"], strides, strict=True)
    axes = [v[a:b:s] for v, (a, b, s) in zip(zeros.axes, spans, strict=True)]
    return [Zeros.of(axes, zeros.value)]


def _pad(walk, equation, operands, record):
    del walk, record
    zeros, filling = operands
    axes = []
    filled = filling.value is not None and filling.value == 0
    for vector, (low, high, interior) in zip(
        zeros.axes, equation.params["padding_config"], strict=True
    ):
        if interior or low < 0 or high < 0:
            return [Zeros.nothing(sizes(equation.outvars[0]))]
        if (low or high) and not filled:
            axes.append(np.concatenate([np.zeros(low, bool), vector, np.zeros(high, bool)]))
        else:
            axes.append(np.concatenate([np.ones(low, bool), vector, np.ones(high, bool)]))
    if not filled:  # a slice that was zero may now be padded with something else
        padded = [i for i, c in enumerate(equation.params["padding_config"]) if any(c[:2])]
        axes = [v if padded == [i] or not padded else np.zeros_like(v) for i, v in enumerate(axes)]
    return [Zeros.of(axes)]


def _gather(walk, equation, operands, record):
    del walk
    result = record.results[0]
    axes = [np.zeros(size, bool) for size in sizes(equation.outvars[0])]
    numbers, taken = equation.params["dimension_numbers"], equation.params["slice_sizes"]
    fill = equation.params["fill_value"]
    if fill is not None and np.isfinite(fill) and fill != 0:
        return [Zeros.of(axes)]
    gone = (*numbers.collapsed_slice_dims, *numbers.operand_batching_dims)
    whole = [i for i in range(len(operands[0].axes)) if i not in gone]
    for i, target in zip(whole, numbers.offset_dims, strict=True):
        if (
            taken[i] == len(operands[0].axes[i])
            and result.axes[target] == record.operands[0].axes[i]
        ):
            axes[target] = operands[0].axes[i]
    return [Zeros.of(axes)]


def _dynamic_slice(walk, equation, operands, record):
    del walk, record
    zeros, taken = operands[0], equation.params["slice_sizes"]
    axes = [v if v.size == n else np.zeros(n, bool) for v, n in zip(zeros.axes, taken, strict=True)]
    return [Zeros.of(axes, zeros.value)]


def _reduce_window(walk, equation, operands, record):
    """Pooling leaves what is zero along other axes zero."""
    del walk
    kept = [
        vector if a == b else np.zeros(size, bool)
        for vector, size, a, b in zip(
            operands[0].axes,
            sizes(equation.outvars[0]),
            record.operands[0].axes,
            record.results[0].axes,
            strict=True,
        )
    ]
    return [Zeros.of(kept)]


def _identity(walk, equation, operands, record):
    del walk, equation, record
    return operands


ZERO_RULES: dict[str, ZeroRule] = {
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
    "gather": _gather,
    "dynamic_slice": _dynamic_slice,
    "reduce_window_sum": _reduce_window,
    "reduce_window_max": _reduce_window,
    "reduce_window_min": _reduce_window,
    **dict.fromkeys(
        ["optimization_barrier", "sharding_constraint", "reshard", "device_put"], _identity
    ),
}
