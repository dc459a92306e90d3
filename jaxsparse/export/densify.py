"""A program with dense products in place of those by packed weights.

Formats without such products take a dense weight that holds zeros. It is made here, once
and outside of the program, from packed weights that no input has a part in: through
whatever is done to their arrays before they are multiplied by.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jax.extend import core

from jaxsparse import control, jaxprs
from jaxsparse.export.program import ExportError

PRODUCTS = ("sparse_product", "sparse_scaled_product")


def densified(jaxpr: core.ClosedJaxpr) -> core.ClosedJaxpr:
    """The program with dense products; one without packed weights is returned as it is.

    Raises:
      ExportError: for a product of packed weights that are computed from the inputs, or are
        slices that a loop takes, and for the products of a gradient.

    Example:
      >>> import jaxsparse as js
      >>> packed = js.pack(jnp.eye(8), js.Block(4, 4))
      >>> jaxpr = jax.make_jaxpr(lambda x: js.sparse_dot(x, packed))(jnp.ones((2, 8)))
      >>> [equation.primitive.name for equation in densified(jaxpr).eqns]
      ['dot_general']
    """
    if not any(e.primitive.name.startswith("sparse_") for e in jaxprs.equations(jaxpr)):
        return jaxpr
    program, evaluator = jaxprs.opened(jaxpr), _Densifier()

    def dense(*inputs):
        return [_staged(result) for result in jaxprs.walk(program, inputs, evaluator.visit)]

    shapes = [jax.ShapeDtypeStruct(aval.shape, aval.dtype) for aval in jaxpr.in_avals]
    traced = jax.make_jaxpr(dense)(*shapes)
    needed = _needed(traced.jaxpr)
    # Constants that are left out go with the equations that read them.
    return jax.make_jaxpr(
        lambda *inputs: jaxprs.walk((needed, traced.consts), inputs, jaxprs.bind)
    )(*shapes)


class _Known:
    """A value that no input has a part in.

    Attributes:
      staged: it, where the program computes it.
      array: computes it now.
    """

    def __init__(self, staged: Any, array: Callable[[], Any]):
        self.staged, self.array = staged, array

    @classmethod
    def of(cls, value: Any) -> Any:
        """A constant that control flow does not make a tracer of."""
        return value if isinstance(value, Tracer | cls) else cls(value, lambda: value)


# Control flow hands it on as it is.
jax.tree_util.register_pytree_node(_Known, lambda known: ((), known), lambda known, _: known)


class _Densifier(control.Evaluator):
    def array(self, value, operation):
        del operation
        return _staged(value)

    def visit(self, equation, operands):
        name = equation.primitive.name
        if name in PRODUCTS:
            return [_product(equation, *operands)]
        if name.startswith("sparse_"):
            raise ExportError(
                f"{name} in {jaxprs.where(equation)} is part of a gradient; the model alone "
                "would work"
            )
        if inner := jaxprs.programs(equation):
            return control.rebuild(
                equation,
                [_Known.of(operand) for operand in operands],
                lambda i, o: jaxprs.walk(inner[i], o, self.visit),
                self,
            )
        results = jaxprs.bind(equation, [_staged(operand) for operand in operands])
        if equation.effects or any(isinstance(operand, Tracer) for operand in operands):
            return results

        def array(number):
            with jax.ensure_compile_time_eval():
                return jaxprs.bind(equation, [_array(operand) for operand in operands])[number]

        return [_Known(r, lambda number=i: array(number)) for i, r in enumerate(results)]


def _staged(value):
    return value.staged if isinstance(value, _Known) else value


def _array(value):
    return value.array() if isinstance(value, _Known) else value


def _product(equation, x, *weight):
    name, params = equation.primitive.name, equation.params
    if any(isinstance(operand, Tracer) for operand in weight):
        raise ExportError(
            f"{name} in {jaxprs.where(equation)} multiplies by packed weights that are no "
            "constants of the program; weights that the function closes over would work, "
            "and js.unpack_params of those that a loop takes slices of"
        )
    with jax.ensure_compile_time_eval():
        values, *index = map(_array, weight)
        scales = index.pop(0) if name == "sparse_scaled_product" else None
        dense = params["layout"].todense(values, *index)
        if scales is not None:
            dense = dense.astype(scales.dtype) * scales
        if params.get("transpose"):
            dense = dense.T
        if not jnp.issubdtype(dense.dtype, jnp.floating):
            dense = dense.astype(params["out_dtype"])
    return jnp.matmul(_staged(x), dense, preferred_element_type=params["out_dtype"])


def _needed(jaxpr):
    """The program without equations whose results nothing reads."""
    read, kept = {v for v in jaxpr.outvars if not isinstance(v, core.Literal)}, []
    for equation in reversed(jaxpr.eqns):
        if equation.effects or not read.isdisjoint(equation.outvars):
            read.update(v for v in equation.invars if not isinstance(v, core.Literal))
            kept.append(equation)
    return jaxpr.replace(eqns=kept[::-1])
