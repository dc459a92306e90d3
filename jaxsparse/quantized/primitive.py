"""The JAX primitive underneath `int8_dot`: integer sums, and what is made of them in one pass."""

import functools

from jax.interpreters import batching

from jaxsparse.kernels import xla
from jaxsparse.products.primitives import (
    check_operands,
    product_primitive,
    rows_batching,
    rows_result,
)


def _abstract(x, values, scales, bias, *rest, layout, activation, out_dtype, implementation):
    del activation, implementation
    index = rest[4:]
    check_operands(layout, values.shape, index)
    width = layout.shape[1]
    if x.ndim != 2 or x.shape[1] != layout.shape[0]:
        raise ValueError(f"x has shape {x.shape}, the layout {layout} needs rows of its inputs.")
    if scales.shape != (width,) or bias.shape not in ((width,), (0,)):
        raise ValueError(
            f"scales {scales.shape} and bias {bias.shape} do not fit {width} output columns."
        )
    if any(number.shape for number in rest[:4]):
        raise ValueError("scales and zero points of codes must be scalars.")
    operands = x, values, scales, bias, *rest
    return rows_result(x, (x.shape[0], width), out_dtype, *operands, rows=x.sharding.spec[0])


def _empty(out, **params):
    """The bias alone, or codes of it: XLA's is right without sums, too."""
    del out
    return functools.partial(xla.int8_dot, **params)


# Operands: x (M, K), values, scales (N,), bias (N,) or (0,), the scale and the zero point of x,
# those of y, and the index. y is made of the sums by `activation` and `out_dtype`.
int8_dot_p = product_primitive("sparse_int8_dot", "int8_dot", _abstract, empty_of=_empty)
batching.primitive_batchers[int8_dot_p] = lambda operands, axes, **params: rows_batching(
    int8_dot_p, operands, axes, **params
)
