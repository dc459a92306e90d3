"""Matrix products and convolutions, and what constants add to them."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Float

from jaxsparse.graph.analysis.constants import Constants, Vector, where_zero, zeros_only
from jaxsparse.graph.analysis.registry import channels, constants, sizes, smaller
from jaxsparse.products.sights import ENDS


@channels("dot_general")
def dot_general(graph, equation, left, right):
    """What is summed over and what is a batch are the same channels on both sides."""
    (left_sum, right_sum), (left_batch, right_batch) = equation.params["dimension_numbers"]
    for i, k in zip((*left_sum, *left_batch), (*right_sum, *right_batch), strict=True):
        graph.unify(left[i], right[k])
    free = [axis for i, axis in enumerate(left) if i not in (*left_sum, *left_batch)]
    free += [axis for i, axis in enumerate(right) if i not in (*right_sum, *right_batch)]
    return [[*(left[i] for i in left_batch), *free]]


@constants("dot_general")
def dot_general_constants(walk, equation, left, right):
    """Zero where a factor is; constants times a weight may go into a bias."""
    (left_sum, right_sum), (left_batch, right_batch) = equation.params["dimension_numbers"]
    weight = walk.weight()
    for axes in zip(left_sum, right_sum, strict=True):
        vectors = [known.axes[axis] for known, axis in zip((left, right), axes, strict=True)]
        term, adds = walk.record.operands[0].axes[axes[0]], (vectors[0] != 0) & (vectors[1] != 0)
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


@channels("conv_general_dilated")
def conv_general_dilated(graph, equation, x, kernel):
    """Channels in and out; the groups of a grouped convolution are a factor of both."""
    params, terms = equation.params, graph.terms
    numbers, shape = params["dimension_numbers"], sizes(equation.outvars[0])
    batch, into, *places = numbers.lhs_spec
    out_features, in_features, *window = numbers.rhs_spec
    for value, axes in ((x, places), (kernel, window)):
        for i in axes:
            graph.pin(value[i], "is a spatial axis")
    groups, batch_groups = params["feature_group_count"], params["batch_group_count"]
    # One of the two counts is 1. Groups of examples have output channels of their own.
    group, batch_group = terms.atom(groups), terms.atom(batch_groups)
    each = terms.atom(terms.size(kernel[out_features]) // (groups * batch_groups))
    examples = terms.atom(shape[numbers.out_spec[0]])
    graph.unify(x[into], terms.product([group, kernel[in_features]]))
    graph.unify(kernel[out_features], terms.product([group, batch_group, each]))
    graph.unify(x[batch], terms.product([batch_group, examples]))
    axes = [graph.pinned(size, "is a spatial axis") for size in shape]
    axes[numbers.out_spec[0]] = examples
    axes[numbers.out_spec[1]] = kernel[out_features]
    return [axes]


@constants("conv_general_dilated")
def conv_general_dilated_constants(walk, equation, x, kernel):
    """Only what a group sums over leaves here; the groups themselves go on to the result."""
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
    term = walk.record.operands[1].axes[summed]
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


@smaller("conv_general_dilated")
def smaller_convolution(rewriter, equation, x, kernel):
    """In as many groups as are left."""
    params = equation.params
    numbers = params["dimension_numbers"]
    groups = x.shape[numbers.lhs_spec[1]] // kernel.shape[numbers.rhs_spec[1]]
    counts = {"feature_group_count": groups}
    if params["batch_group_count"] != 1:
        examples = rewriter.shape(equation)[numbers.out_spec[0]]
        counts["batch_group_count"] = x.shape[numbers.lhs_spec[0]] // examples
    return equation.primitive.bind(x, kernel, **(params | counts))


def ends(equation: Any, operand: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Of an operand the axes of channels that a product sums over, and its batches."""
    name = equation.primitive.name
    summed, batched = ENDS[name](equation, operand)
    return (summed if name == "dot_general" else summed[-1:]), batched


def contribution(
    equation: Any, weight: int, array: Any, values: Mapping[int, Vector]
) -> Float[np.ndarray, "..."]:
    """The product of a weight and an operand that is uniform along all but summed axes.

    Args:
      equation: a `dot_general`, or a convolution without padding.
      weight: which operand is the weight.
      array: the weight.
      values: by summed axis of the other operand its numbers; 0 is nothing.
    """
    shape, numbers = sizes(equation.invars[1 - weight]), equation.params["dimension_numbers"]
    dtype = jnp.promote_types(array.dtype, jnp.float32)
    is_dot = equation.primitive.name == "dot_general"
    summed, batched = ends(equation, 1 - weight)
    patch = [n if i in (*summed, *batched) else 1 for i, n in enumerate(shape)]
    if not is_dot:
        for i, k, step in zip(
            numbers.lhs_spec[2:], numbers.rhs_spec[2:], equation.params["rhs_dilation"], strict=True
        ):
            patch[i] = (array.shape[k] - 1) * step + 1  # one window
    other = np.zeros(patch, dtype)
    for axis, vector in values.items():
        spread = np.expand_dims(vector, [i for i in range(len(patch)) if i != axis])
        other = np.where(spread != 0, spread, other).astype(dtype)
    operands: list[Any] = [other, other]
    operands[weight] = jnp.asarray(array).astype(dtype)
    params: dict[str, Any] = {"preferred_element_type": None, "precision": lax.Precision.HIGHEST}
    if is_dot:
        return np.asarray(lax.dot_general(operands[0], operands[1], numbers, **params))
    names = ("window_strides", "padding", "rhs_dilation", "dimension_numbers")
    options = {name: equation.params[name] for name in (*names, "feature_group_count")}
    return np.asarray(lax.conv_general_dilated(*operands, **options, **params))


def varying(equation: Any, weight: int) -> tuple[int | None, ...]:
    """Axes of a product along which a constant adds different numbers, None for others."""
    shape, numbers = sizes(equation.outvars[0]), equation.params["dimension_numbers"]
    if equation.primitive.name == "dot_general":
        summed, batch = numbers
        left = len(sizes(equation.invars[0])) - len(summed[0])
        free = range(len(batch[0]), left) if weight == 0 else range(left, len(shape))
        differs = {*range(len(batch[0])), *free}
    else:
        differs = {numbers.out_spec[1]}
    return tuple(i if i in differs and n != 1 else None for i, n in enumerate(shape))
