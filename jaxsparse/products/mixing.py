"""Weights that meet other weights, and rows of these that data sum over: of w in x @ (v @ w).

A weight that multiplies a table meets its rows, whatever is done with each of the results. Where
a product with data sums over these, the table was no rows but one more weight.
"""

from collections.abc import Sequence

from jaxsparse.products.factors import stranger
from jaxsparse.products.sights import ENDS, Sight, Value


def mixed(equation, values: Sequence[Value]) -> set[str]:
    """Paths of the weights whose rows a `dot_general` with data sums over, by `Value.rows`."""
    return {
        sight.path
        for position, (one, other) in enumerate(_pairs(values))
        for sight in one.rows
        for axis in ENDS["dot_general"](equation, position)[0]
        for name, size in sight.axes[axis]
        if other.varies and name[0] >= 0 and size != 1
    }


def rows_of_product(equation, values: Sequence[Value]) -> tuple[Sight, ...]:
    """`Value.rows` of what a `dot_general` returns."""
    shape, rows = equation.outvars[0].aval.shape, []
    for position, (one, other) in enumerate(_pairs(values)):
        if one.varies or other.varies:
            continue
        summed, batch = ENDS["dot_general"](equation, position)
        free = [i for i in range(one.array.ndim) if i not in (*summed, *batch)]
        start = len(shape) - len(free) if position else len(batch)
        met = [Sight.of(sight.path, one.array.shape) for sight in other.sights]
        for sight in (*one.rows, *met):
            axes = [stranger(size) if isinstance(size, int) else () for size in shape]
            axes[start : start + len(free)] = [sight.axes[i] for i in free]
            rows.append(sight.seen(axes, {}))
    return tuple(rows)


def _pairs(values: Sequence[Value]) -> tuple[tuple[Value, Value], tuple[Value, Value]]:
    left, right = values
    return (left, right), (right, left)
