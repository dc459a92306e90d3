"""Primitives that take and write at positions: whole axes pass, indexed ones are pinned."""

from jaxsparse.graph.rules.registry import exchange, rule, sizes
from jaxsparse.graph.values import Value


@rule("dynamic_slice")
def dynamic_slice(graph, equation, operand, *starts):
    """Whole axes pass; of the others some positions are taken, so they are pinned."""
    del starts
    result = operand
    for i, size in enumerate(equation.params["slice_sizes"]):
        if size != graph.terms.size(operand.axes[i]):
            graph.pin(operand.axes[i], "takes positions of the axis")
            result = exchange(result, i, graph.pinned(size, "is part of an axis"))
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
