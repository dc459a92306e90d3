"""Matrix products, convolutions and pooling."""

from jaxsparse.graph.rules.registry import rule, sizes
from jaxsparse.graph.values import Value


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
    numbers, shape = params["dimension_numbers"], sizes(equation.outvars[0])
    batch, into, *places = numbers.lhs_spec
    out_features, in_features, *window = numbers.rhs_spec
    for value, axes in ((x, places), (kernel, window)):
        for i in axes:
            graph.pin(value.axes[i], "is a spatial axis")
    groups, batch_groups = params["feature_group_count"], params["batch_group_count"]
    # One of the two counts is 1. Groups of examples have output channels of their own.
    group, batch_group = terms.atom(groups), terms.atom(batch_groups)
    each = terms.atom(terms.size(kernel.axes[out_features]) // (groups * batch_groups))
    examples = terms.atom(shape[numbers.out_spec[0]])
    graph.unify(x.axes[into], terms.product([group, kernel.axes[in_features]]))
    graph.unify(kernel.axes[out_features], terms.product([group, batch_group, each]))
    graph.unify(x.axes[batch], terms.product([batch_group, examples]))
    graph.product_with(kernel, [in_features], [out_features], depthwise=groups > 1)
    axes = [graph.pinned(size, "is a spatial axis") for size in shape]
    axes[numbers.out_spec[0]] = examples
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
