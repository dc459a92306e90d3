"""Primitives that take and write at positions: whole axes pass, indexed ones are pinned."""

import numpy as np

from jaxsparse.graph.analysis.constants import Constants, agreed
from jaxsparse.graph.analysis.registry import channels, constants, sizes, smaller


@channels("dynamic_slice")
def dynamic_slice(graph, equation, operand, *starts):
    """Whole axes pass; of the others some positions are taken, so they are pinned."""
    result = list(operand)
    for i, size in enumerate(equation.params["slice_sizes"]):
        if size != graph.terms.size(operand[i]):
            graph.pin(operand[i], "takes positions of the axis")
            result[i] = graph.pinned(size, "is part of an axis")
    return [result]


@constants("dynamic_slice")
def dynamic_slice_constants(walk, equation, known, *starts):
    """Axes taken whole pass."""
    axes = [
        v if v.size == n else np.full(n, known.value)
        for v, n in zip(known.axes, equation.params["slice_sizes"], strict=True)
    ]
    return [Constants.of(axes, known.value)]


@channels("dynamic_update_slice")
def dynamic_update_slice(graph, equation, operand, update, *starts):
    """Whole axes pass; those written to in part are pinned."""
    for axis, written in zip(operand, update, strict=True):
        if graph.terms.size(axis) == graph.terms.size(written):
            graph.unify(axis, written)
        else:
            graph.pin(axis, "is written to at some positions")
            graph.pin(written, "is written to some positions")
    return [operand]


@constants("dynamic_update_slice")
def dynamic_update_slice_constants(walk, equation, known, update, *starts):
    """Axes written whole: what both agree on."""
    axes = [
        agreed([v, written]) if v.size == written.size else np.full(v.size, np.nan)
        for v, written in zip(known.axes, update.axes, strict=True)
    ]
    return [Constants.of(axes)]


@channels("gather")
def gather(graph, equation, operand, indices):
    """Axes taken whole pass (the features of an embedding), indexed ones are pinned."""
    numbers, taken = equation.params["dimension_numbers"], equation.params["slice_sizes"]
    shape = sizes(equation.outvars[0])
    graph.pin(indices[-1], "is an index")
    batch = [i for i in range(len(shape)) if i not in numbers.offset_dims]
    axes: dict[int, int] = dict(zip(batch, indices[:-1], strict=True))
    for i, target in _whole(operand, numbers):
        if taken[i] == graph.terms.size(operand[i]) and i not in numbers.start_index_map:
            axes[target] = operand[i]
        else:
            graph.pin(operand[i], "is indexed")
            axes[target] = graph.pinned(shape[target], "is part of an indexed axis")
    for i in numbers.collapsed_slice_dims:
        graph.pin(operand[i], "is indexed")
    for i, k in zip(
        numbers.operand_batching_dims, numbers.start_indices_batching_dims, strict=True
    ):
        graph.unify(operand[i], indices[k])
    return [[axes[i] for i in range(len(shape))]]


@constants("gather")
def gather_constants(walk, equation, known, indices):
    """Axes taken whole pass."""
    before, after = walk.record.operands[0].axes, walk.record.results[0].axes
    axes = [np.full(size, np.nan) for size in sizes(equation.outvars[0])]
    fill = equation.params["fill_value"]
    for i, target in _whole(known.axes, equation.params["dimension_numbers"]):
        vector = known.axes[i]
        if equation.params["slice_sizes"][i] == len(vector) and after[target] == before[i]:
            filled = fill is not None and np.isfinite(fill)
            axes[target] = np.where(vector == fill, vector, np.nan) if filled else vector
    return [Constants.of(axes)]


def _whole(operand, numbers):
    """Axes of the operand that are axes of a slice, with those of the result that they become."""
    gone = (*numbers.collapsed_slice_dims, *numbers.operand_batching_dims)
    whole = [i for i in range(len(operand)) if i not in gone]
    return zip(whole, numbers.offset_dims, strict=True)


@smaller("gather")
def smaller_gather(rewriter, equation, operand, indices):
    """Slices as large as what is left."""
    params = equation.params
    taken = tuple(
        rewriter.kept.size(term, size) if size == whole else size
        for term, size, whole in zip(
            rewriter.record.operands[0].axes,
            params["slice_sizes"],
            sizes(equation.invars[0]),
            strict=True,
        )
    )
    return equation.primitive.bind(operand, indices, **(params | {"slice_sizes": taken}))


@channels("scatter scatter-add scatter-max scatter-min scatter-mul scatter-sub")
def scatter(graph, equation, operand, indices, updates):
    """Axes written whole pass, those written at some positions are pinned."""
    numbers = equation.params["dimension_numbers"]
    graph.pin(indices[-1], "is an index")
    gone = (*numbers.inserted_window_dims, *numbers.operand_batching_dims)
    whole = [i for i in range(len(operand)) if i not in gone]
    for i, k in zip(whole, numbers.update_window_dims, strict=True):
        same = graph.terms.size(operand[i]) == graph.terms.size(updates[k])
        if same and i not in numbers.scatter_dims_to_operand_dims:
            graph.unify(operand[i], updates[k])
        else:
            graph.pin(operand[i], "is written to at some positions")
            graph.pin(updates[k], "is written to some positions")
    for i in numbers.inserted_window_dims:
        graph.pin(operand[i], "is written to at some positions")
    batch = [k for k in range(len(updates)) if k not in numbers.update_window_dims]
    for k, axis in zip(batch, indices[:-1], strict=True):
        # Where two updates meet, the last may win.
        graph.pin(updates[k], "is a list of updates in their order")
        graph.pin(axis, "is a list of updates in their order")
    for i, k in zip(
        numbers.operand_batching_dims, numbers.scatter_indices_batching_dims, strict=True
    ):
        graph.unify(operand[i], indices[k])
    return [operand]
