"""Single products of a program, at any sizes, dense or packed: what a table has times of."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxsparse.allocation.costs.program import Part
from jaxsparse.allocation.costs.storing import Storing
from jaxsparse.products.sparse_dot import sparse_dot
from jaxsparse.products.sparsify import sparsify
from jaxsparse.timing import quickest

CONVOLUTION = "conv_general_dilated"
# Parameters that say nothing of the work.
IDLE = ("out_sharding", "precision", "preferred_element_type")


# Seconds that a timed loop of one product fills: what starting it takes is little beside that.
FILLED = 2e-3
MOST = 1024


@dataclasses.dataclass(frozen=True)
class Call:
    """A product that can be compiled by itself.

    Attributes:
      name: op, shapes, dtypes, storage and density: what is equal takes equally long.
      make: compiles it, with operands made up.
    """

    name: str
    make: Callable[[], "Loop"]


class Loop:
    """A compiled program that runs a product several times, one after another.

    Every turn takes a number of the last result into its first operand, so that none can be left
    out, begun early or cut down to what is read of it.

    Args:
      function: of the operands.
      operands: arrays or packed weights, the first one an array.

    Attributes:
      turns: as many as fill `FILLED`.
    """

    def __init__(self, function: Callable[..., Any], operands: Sequence[Any]):
        def turn(_, state):
            first, *rest = jax.lax.optimization_barrier(state)
            result = jax.lax.optimization_barrier(function(first, *rest))
            number = (result[(0,) * result.ndim] / 8).astype(first.dtype)
            start = (0,) * first.ndim
            first = jax.lax.dynamic_update_slice(first, number.reshape((1,) * first.ndim), start)
            return first, *rest

        self._run = jax.jit(lambda turns, *state: jax.lax.fori_loop(0, turns, turn, state)[0])
        self._operands = tuple(operands)
        self.turns = 1
        jax.block_until_ready(self())  # compiles
        while self.turns < MOST and quickest(self) < FILLED:
            self.turns *= 2

    def __call__(self) -> Any:
        return self._run(self.turns, *self._operands)


def dense(part: Part, widths: Mapping[str, int]) -> Call:
    """A product of arrays, where groups of units have some widths."""
    shapes = [tuple(size(widths) for size in shape) for shape in part.shapes]
    dtypes = [variable.aval.dtype for variable in part.equation.invars]
    params = _params(part, shapes)

    def make():
        operands = [
            _numbers(i, part, shape, dtype)
            for i, (shape, dtype) in enumerate(zip(shapes, dtypes, strict=True))
        ]
        return Loop(lambda *x: part.equation.primitive.bind(*x, **params), operands)

    return Call(_name(part, shapes, dtypes, params), make)


def packed(
    part: Part, path: str, density: float, widths: Mapping[str, int], shape: tuple[int, ...],
    storing: Storing,
) -> Call:  # fmt: skip
    """A product with a packed weight.

    Args:
      part, widths: as in `dense`.
      path, shape: of the weight, with what the widths leave.
      density: fraction that is stored.
      storing: says how.

    Raises:
      ValueError: for a product that packed weights do not have.
    """
    pattern, view = storing.view(path, shape)
    dtype = part.equation.invars[0].aval.dtype
    stored = f"{pattern.storage(view)} density={density:.4g}"
    if part.equation.primitive.name == CONVOLUTION:
        shapes = [tuple(size(widths) for size in sizes) for sizes in part.shapes]
        if shapes[1] != shape or part.data[1]:
            raise ValueError(
                f"densities: {path!r} of shape {shape} is convolved as {shapes[1]}: only a kernel "
                "as it is has a latency packed; without it in densities it is dense"
            )
        params = _params(part, shapes)
        dtypes = [variable.aval.dtype for variable in part.equation.invars]

        def convolve():
            weight = storing.packed(path, shape, density, dtype)
            function = sparsify(
                lambda x, w: part.equation.primitive.bind(x, w, **params), on_dense="ignore"
            )
            return Loop(function, [_numbers(0, part, shapes[0], dtype), weight])

        return Call(f"{_name(part, shapes, dtypes, params)} {stored}", convolve)
    inputs, outputs = view.matrix_shape
    rows, rest = divmod(part.macs(widths), inputs * outputs)
    if rest:
        raise ValueError(
            f"densities: a product sums over part of {path!r} of shape {shape}: it has no latency "
            "packed; without it in densities it is dense"
        )

    def multiply():
        weight = storing.packed(path, shape, density, dtype, flat=True)
        return Loop(sparse_dot, [_numbers(0, part, (rows, inputs), dtype), weight])

    return Call(f"sparse_dot {dtype}[{rows},{inputs}] [{inputs},{outputs}] {stored}", multiply)


def _params(part: Part, shapes: Sequence[tuple[int, ...]]) -> dict[str, Any]:
    params = dict(part.equation.params)
    if part.equation.primitive.name == CONVOLUTION and params["batch_group_count"] == 1:
        numbers = params["dimension_numbers"]
        channels, each = shapes[0][numbers.lhs_spec[1]], shapes[1][numbers.rhs_spec[1]]
        params["feature_group_count"] = channels // each
    return params


def _name(part: Part, shapes, dtypes, params) -> str:
    operands = (
        f"{dtype}[{','.join(map(str, shape))}]" for dtype, shape in zip(dtypes, shapes, strict=True)
    )
    said = (
        f"{name}={_short(value)}"
        for name, value in sorted(params.items())
        if value is not None and name not in IDLE
    )
    return " ".join([part.equation.primitive.name, *operands, *said])


def _short(value: Any) -> str:
    if isinstance(value, jax.lax.ConvDimensionNumbers):
        value = tuple(value)
    return str(value).replace(" ", "")


def _numbers(place: int, part: Part, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """Made-up numbers for an operand: neither zeros nor so small that arithmetic slows down."""
    if part.equation.primitive.name == "ragged_dot_general" and place == 2:
        rows = part.equation.invars[0].aval.shape[0]
        return jnp.asarray(np.diff(np.linspace(0, rows, math.prod(shape) + 1).astype(int)), dtype)
    drawn = np.random.default_rng(place).integers(1, 9, shape)
    return jnp.asarray(drawn / 8 if jnp.issubdtype(dtype, jnp.inexact) else drawn, dtype)
