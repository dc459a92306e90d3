"""What primitives that move numbers about do to constants."""

import numpy as np

from jaxsparse.graph.axes import along, others
from jaxsparse.graph.constants import Constants, agreed, zeros_only
from jaxsparse.graph.rules import sizes
from jaxsparse.graph.rules.shapes import common_groups


def broadcast_in_dim(walk, equation, operands, record):
    """New axes are uniform."""
    del walk, record
    known, shape = operands[0], sizes(equation.outvars[0])
    axes = [np.full(size, known.value) for size in shape]
    for vector, target in zip(known.axes, equation.params["broadcast_dimensions"], strict=True):
        axes[target] = np.broadcast_to(vector, shape[target]) if vector.size == 1 else vector
    return [Constants.of(axes, known.value)]


def transpose(walk, equation, operands, record):
    """Axes in another order."""
    del walk, record
    (known,) = operands
    return [Constants.of([known.axes[i] for i in equation.params["permutation"]], known.value)]


def rev(walk, equation, operands, record):
    """Axes turned round."""
    del walk, record
    (known,), turned = operands, equation.params["dimensions"]
    axes = [v[::-1] if i in turned else v for i, v in enumerate(known.axes)]
    return [Constants.of(axes, known.value)]


def squeeze(walk, equation, operands, record):
    """Drops axes of size 1."""
    del walk, record
    (known,) = operands
    gone = [i % max(len(known.axes), 1) for i in equation.params["dimensions"]]
    return [Constants.of([v for i, v in enumerate(known.axes) if i not in gone], known.value)]


def reshape(walk, equation, operands, record):
    """What is known of a position of an old axis holds for all that it becomes."""
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


def concatenate(walk, equation, operands, record):
    """Along one axis one after the other; along the others what all agree on."""
    del walk, record
    dimension = equation.params["dimension"]
    axes = []
    for i in range(len(operands[0].axes)):
        vectors = [known.axes[i] for known in operands]
        axes.append(np.concatenate(vectors) if i == dimension else agreed(vectors))
    return [Constants.of(axes)]


def stack(walk, equation, operands, record):
    """A new axis, of whole arrays."""
    del walk, record
    axes = [agreed(vectors) for vectors in zip(*(known.axes for known in operands), strict=True)]
    axes.insert(equation.params["axis"], np.array([known.value for known in operands]))
    return [Constants.of(axes)]


def unstack(walk, equation, operands, record):
    """Takes an axis apart."""
    del walk, record
    (known,), gone = operands, equation.params["axis"]
    rest = [v for i, v in enumerate(known.axes) if i != gone]
    # A slice that is one number says so for itself only.
    return [Constants.of(rest, value) for value in known.axes[gone]]


def split(walk, equation, operands, record):
    """Parts of an axis."""
    del walk, record
    (known,), axis = operands, equation.params["axis"]
    results, start = [], 0
    for size in equation.params["sizes"]:
        axes = list(known.axes)
        axes[axis] = axes[axis][start : start + size]
        results.append(Constants.of(axes, known.value))
        start += size
    return results


def slice_(walk, equation, operands, record):
    """Positions of every axis."""
    del walk, record
    (known,), params = operands, equation.params
    strides = params["strides"] or [1] * len(known.axes)
    spans = zip(params["start_indices"], params["limit_indices"], strides, strict=True)
    axes = [v[a:b:s] for v, (a, b, s) in zip(known.axes, spans, strict=True)]
    return [Constants.of(axes, known.value)]


def pad(walk, equation, operands, record):
    """Slices of padding are what it is filled with; the others have it at their ends."""
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


def tile(walk, equation, operands, record):
    """Repeats every axis."""
    del walk, record
    (known,) = operands
    tiled = zip(known.axes, equation.params["reps"], strict=True)
    return [Constants.of([np.tile(vector, count) for vector, count in tiled], known.value)]


def gather(walk, equation, operands, record):
    """Axes taken whole pass."""
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


def dynamic_slice(walk, equation, operands, record):
    """Axes taken whole pass."""
    del walk, record
    known, taken = operands[0], equation.params["slice_sizes"]
    axes = [
        v if v.size == n else np.full(n, known.value)
        for v, n in zip(known.axes, taken, strict=True)
    ]
    return [Constants.of(axes, known.value)]


def dynamic_update_slice(walk, equation, operands, record):
    """Axes written whole: what both agree on."""
    del walk, record
    axes = [
        agreed([v, written]) if v.size == written.size else np.full(v.size, np.nan)
        for v, written in zip(operands[0].axes, operands[1].axes, strict=True)
    ]
    return [Constants.of(axes)]


def along_an_axis(walk, equation, operands, record):
    """Accumulating along one axis leaves what is zero along the others zero."""
    del walk, record
    if len(operands) != 1:
        return [Constants.nothing(sizes(variable)) for variable in equation.outvars]
    params, name = equation.params, equation.primitive.name
    ordered = params["dimension"] if "dimension" in params else params["axis"]
    pick = (lambda v: v) if name in ("cummax", "cummin", "sort") else zeros_only
    axes = [
        np.full(v.size, np.nan) if i == ordered else pick(v) for i, v in enumerate(operands[0].axes)
    ]
    return [Constants.of(axes)]


def identity(walk, equation, operands, record):
    """Hands through."""
    del walk, equation, record
    return operands
