"""Primitives that give the same numbers other axes."""

import jax.numpy as jnp
import numpy as np

from jaxsparse.graph.analysis.constants import Constants
from jaxsparse.graph.analysis.pieces import along, others
from jaxsparse.graph.analysis.registry import (
    channels,
    common_groups,
    constants,
    moved,
    sizes,
    smaller,
)


@channels("transpose squeeze broadcast_in_dim")
def move(graph, equation, operand, *dynamic):
    """Axes in another order; new ones are uniform: any order will do for them."""
    shape = sizes(equation.outvars[0])
    return [
        [
            graph.terms.atom(size) if i is None else operand[i]
            for i, size in zip(moved(equation), shape, strict=True)
        ]
    ]


@constants("transpose squeeze broadcast_in_dim")
def move_constants(walk, equation, known, *dynamic):
    """The same, of vectors; an axis that is repeated is one number where all of it is."""
    shape = sizes(equation.outvars[0])
    axes = [
        np.full(size, known.value) if i is None else known.axes[i]
        for i, size in zip(moved(equation), shape, strict=True)
    ]
    return [Constants.of(axes, known.value)]


@channels("rev")
def rev(graph, equation, operand):
    """Turns axes round."""
    for axis in equation.params["dimensions"]:
        graph.pin(operand[axis], "turns the axis round")
    return [operand]


@constants("rev")
def rev_constants(walk, equation, known):
    """The same, of vectors."""
    turned = equation.params["dimensions"]
    axes = [v[::-1] if i in turned else v for i, v in enumerate(known.axes)]
    return [Constants.of(axes, known.value)]


@channels("tile")
def tile(graph, equation, operand):
    """Repeats: the product of a uniform axis and the axis."""
    counted = zip(equation.params["reps"], operand, strict=True)
    return [[graph.terms.product([graph.terms.atom(count), axis]) for count, axis in counted]]


@constants("tile")
def tile_constants(walk, equation, known):
    """Repeats every vector."""
    tiled = zip(known.axes, equation.params["reps"], strict=True)
    return [Constants.of([np.tile(vector, count) for vector, count in tiled], known.value)]


@smaller("tile")
def smaller_tile(rewriter, equation, operand):
    """As often as before."""
    shape = rewriter.shape(equation)
    return jnp.tile(operand, [new // old for new, old in zip(shape, operand.shape, strict=True)])


@channels("reshape")
def reshape(graph, equation, operand, *dynamic):
    """Products: axes of one side are matched with those of the other, major to minor."""
    before, shape = sizes(equation.invars[0]), sizes(equation.outvars[0])
    if dynamic or equation.params["dimensions"] is not None or 0 in shape:
        return graph.unknown(equation, [operand], "reshapes in another order")
    axes = [graph.terms.atom(size) for size in shape]
    for old, new in common_groups(before, shape):
        merged = graph.terms.product([operand[i] for i in old])
        split = graph.terms.product([axes[i] for i in new])
        graph.unify(merged, split, f"cuts {before} to {shape} across the channels")
    return [axes]


@constants("reshape")
def reshape_constants(walk, equation, known, *dynamic):
    """What is known of a position of an old axis holds for all that it becomes."""
    before, after = sizes(equation.invars[0]), sizes(equation.outvars[0])
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


@smaller("reshape broadcast_in_dim iota dynamic_slice")
def smaller_shape(rewriter, equation, *operands):
    """The shape among the parameters is that of the result."""
    params = equation.primitive.get_bind_params(equation.params)
    [name] = params.keys() & {"new_sizes", "shape", "slice_sizes"}
    return equation.primitive.bind(*operands, **(params | {name: rewriter.shape(equation)}))
