"""A program without its products: what norms, activations and the like take by themselves."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxsparse import control, jaxprs
from jaxsparse.products.sights import ENDS


class Remainder:
    """A program whose products are given to it instead of computed.

    Args:
      program: traced.
      arguments: of it.

    A call runs it, compiled; it returns the operands of the products beside its results, so that
    what makes them is not left out. Within loops and branches, which take no more arguments,
    a product is a constant that waits for its operands.
    """

    def __init__(self, program: jaxprs.Program, arguments: Sequence[Any]):
        shapes: list[Any] = []

        def note(equation, operands):
            shapes.append(equation.outvars[0].aval)
            return jnp.zeros(shapes[-1].shape, shapes[-1].dtype), operands

        jax.eval_shape(lambda *given: _Walk(note).run(program, given), *arguments)
        results = [jnp.full(aval.shape, 0.5, aval.dtype) for aval in shapes]

        def rest(arguments, results):
            waiting = iter(results)
            operands: list[Any] = []
            # Made here, that is: an argument that is returned would be copied.
            given = {id(array) for array in (*arguments, *results)}

            def take(equation, met):
                operands.extend(array for array in met if id(array) not in given)
                return next(waiting), met

            return _Walk(take).run(program, arguments), operands

        self._run, self._given = jax.jit(rest), (list(arguments), results)

    def __call__(self) -> Any:
        return self._run(*self._given)


class _Walk:
    def __init__(self, instead: Callable[..., tuple[Any, Sequence[Any]]]):
        self._instead = instead

    def run(self, program: jaxprs.Program, operands: Sequence[Any]) -> list[Any]:
        return jaxprs.walk(program, operands, self._visit)

    def _visit(self, equation, operands):
        if equation.primitive.name in ENDS:
            return [self._instead(equation, operands)[0]]
        inner = jaxprs.programs(equation)
        if not inner:
            return jaxprs.bind(equation, operands)
        if equation.primitive.name not in jaxprs.CONTROL:
            return self.run(inner[0], operands)
        within = _Walk(_constant)
        return control.rebuild(
            equation, operands, lambda n, given: within.run(inner[n], given), control.Boundary()
        )


def _constant(equation, operands):
    """A product's result that is computed from nothing, after its operands."""
    aval = equation.outvars[0].aval
    full = jnp.full(aval.shape, 0.5, aval.dtype)
    result, *waited = jax.lax.optimization_barrier((full, *operands))
    return result, waited
