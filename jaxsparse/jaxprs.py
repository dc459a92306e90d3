"""A walk over a traced program: what `sparsify` and the channel graph stand on."""

from collections.abc import Callable, Sequence
from typing import Any

from jax.extend import core

Visit = Callable[[Any, list[Any]], Sequence[Any]]

# Equations that stand for one inner program, run once on the operands they have.
_INNER = {
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "closed_call": "call_jaxpr",
    "core_call": "call_jaxpr",
    "checkpoint": "jaxpr",
    "remat2": "jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
    "custom_vjp_call_jaxpr": "fun_jaxpr",
}


def walk(jaxpr, consts: Sequence[Any], args: Sequence[Any], visit: Visit) -> list[Any]:
    """Evaluates a jaxpr with values of any kind.

    Args:
      jaxpr: an open jaxpr.
      consts: values of its constants.
      args: values of its arguments.
      visit: called as visit(equation, values of its operands) for every equation
        in order; returns the values of its results.

    Returns:
      The values of the jaxpr's results.
    """
    values = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *args), strict=True))

    def read(atom):
        return atom.val if isinstance(atom, core.Literal) else values[atom]

    for equation in jaxpr.eqns:
        results = visit(equation, [read(atom) for atom in equation.invars])
        values.update(zip(equation.outvars, results, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def bind(equation, operands: Sequence[Any]) -> list[Any]:
    """Computes an equation as JAX would, on arrays and tracers."""
    params = equation.primitive.get_bind_params(equation.params)
    with equation.ctx.manager:
        results = equation.primitive.bind(*operands, **params)
    return list(results) if equation.primitive.multiple_results else [results]


def inner_program(equation) -> tuple[Any, Sequence[Any]] | None:
    """The jaxpr and constants of an equation that runs one program once, else None."""
    parameter = _INNER.get(equation.primitive.name)
    if parameter is None or parameter not in equation.params:
        return None
    return open_jaxpr(equation.params[parameter])


def open_jaxpr(jaxpr) -> tuple[Any, Sequence[Any]]:
    """A jaxpr, closed or open, and its constants."""
    return (jaxpr.jaxpr, jaxpr.consts) if isinstance(jaxpr, core.ClosedJaxpr) else (jaxpr, ())


def split_scan(equation, operands: Sequence[Any]) -> tuple[list[Any], list[Any], list[Any]]:
    """The operands of a `scan`: constants, carry, and what it takes slices of."""
    params = equation.params
    if "ft_in" in params:  # jax 0.11 and later
        sizes = [len(part) for part in params["ft_in"].unpack()]
    else:
        sizes = [params["num_consts"], params["num_carry"]]
    first, second = sizes[0], sizes[0] + sizes[1]
    return list(operands[:first]), list(operands[first:second]), list(operands[second:])


def split_while(equation, operands: Sequence[Any]) -> tuple[list[Any], list[Any], list[Any]]:
    """The operands of a `while`: constants of its condition, of its body, and the carry."""
    first = equation.params["cond_nconsts"]
    second = first + equation.params["body_nconsts"]
    return list(operands[:first]), list(operands[first:second]), list(operands[second:])
