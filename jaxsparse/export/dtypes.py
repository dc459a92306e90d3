"""A program whose products each have operands of one dtype.

JAX multiplies integers by floats, as an einsum with a mask of heads does, and bfloat16 by
float32, in the dtype of the result. Formats whose products know one dtype take operands that
are cast to it before.
"""

import jax
from jax.extend import core

from jaxsparse import control, jaxprs


def of_one_dtype(jaxpr: core.ClosedJaxpr) -> core.ClosedJaxpr:
    """The program with the operands of mixed products cast; one without is returned as it is.

    Example:
      >>> import jax.numpy as jnp
      >>> x, heads = jnp.ones((2, 3)), jnp.ones(3, jnp.int32)
      >>> jaxpr = jax.make_jaxpr(lambda x: jax.lax.dot(x, heads, preferred_element_type=x.dtype))(x)
      >>> [equation.primitive.name for equation in of_one_dtype(jaxpr).eqns]
      ['convert_element_type', 'dot_general']
    """
    if not any(map(_is_mixed, jaxprs.equations(jaxpr))):
        return jaxpr
    border = control.Boundary()

    def visit(equation, operands):
        if _is_mixed(equation):
            dtype = equation.outvars[0].aval.dtype
            operands = [jax.lax.convert_element_type(operand, dtype) for operand in operands]
        elif inner := jaxprs.programs(equation):
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
