"""A program whose products are those that other formats know.

JAX multiplies integers by floats, as an einsum with a mask of heads does, and bfloat16 by
float32, in the dtype of the result; and its products may sum over nothing. Formats whose
products know one dtype take operands that are cast to it before, and a multiplication of
arrays where nothing is summed over.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend import core

from jaxsparse import control, jaxprs


def plain_products(jaxpr: core.ClosedJaxpr) -> core.ClosedJaxpr:
    """The program with such products in other words; one without is returned as it is.

    Example:
      >>> x, heads = jnp.ones((2, 3)), jnp.ones(3, jnp.int32)
      >>> jaxpr = jax.make_jaxpr(lambda x: jax.lax.dot(x, heads, preferred_element_type=x.dtype))(x)
      >>> [equation.primitive.name for equation in plain_products(jaxpr).eqns]
      ['convert_element_type', 'dot_general']
    """
    if not any(_is_mixed(e) or _is_outer(e) for e in jaxprs.equations(jaxpr)):
        return jaxpr
    border = control.Boundary()

    def visit(equation, operands):
        if _is_mixed(equation) or _is_outer(equation):
            dtype = equation.outvars[0].aval.dtype
            operands = [lax.convert_element_type(operand, dtype) for operand in operands]
        if _is_outer(equation):
            x, y = operands
            return [_outer(x, y, equation.params["dimension_numbers"][1])]
        if inner := jaxprs.programs(equation):
            return control.rebuild(
                equation, operands, lambda i, o: jaxprs.walk(inner[i], o, visit), border
            )
        return jaxprs.bind(equation, operands)

    shapes = [jax.ShapeDtypeStruct(aval.shape, aval.dtype) for aval in jaxpr.in_avals]
    return jax.make_jaxpr(lambda *inputs: jaxprs.walk(jaxprs.opened(jaxpr), inputs, visit))(*shapes)


def _is_mixed(equation) -> bool:
    if equation.primitive.name != "dot_general":
        return False
    x, y = (operand.aval.dtype for operand in equation.invars)
    return x != y


def _is_outer(equation) -> bool:
    """Whether a product sums over nothing."""
    if equation.primitive.name != "dot_general":
        return False
    (summed, _), _ = equation.params["dimension_numbers"]
    return not summed


def _outer(x, y, batch):
    """The product of all pairs of entries, batch axes first, then those of x, then those of y."""
    shared = len(batch[0])
    x, y = (
        jnp.transpose(array, [*axes, *(i for i in range(array.ndim) if i not in axes)])
        for array, axes in zip((x, y), batch, strict=True)
    )
    wide = lax.expand_dims(x, range(x.ndim, x.ndim + y.ndim - shared))
    return wide * lax.expand_dims(y, range(shared, x.ndim))
