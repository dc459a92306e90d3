"""A walk over a traced program: what `sparsify`, `products` and the channel graph stand on."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax import lax
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

# Primitives that map every entry alike: operands are of one shape, or scalars.
ELEMENTWISE = """
    abs acos acosh add add_any and asin asinh atan atan2 atanh bessel_i0e bessel_i1e cbrt ceil
    clamp clz complex conj convert_element_type copy copy_p cos cosh digamma div eq eq_to erf
    erf_inv erfc exp exp2 expm1 floor ge gt igamma igammac imag integer_pow is_finite le le_to
    lgamma log log1p log2 logistic lt lt_to max min mul mulhi name ne neg nextafter not
    one_minus_square or polygamma polynomial population_count pow real reduce_precision
    regularized_incomplete_beta rem round rsqrt select_n shift_left shift_right_arithmetic
    shift_right_logical sign sin sinh sqrt square stop_gradient sub tan tanh xor zeta
"""
# One result for every operand, each as its operand is.
IDENTITIES = """
    device_put optimization_barrier reshard sharding_constraint layout_constraint pvary
"""


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


def scan_options(equation, stacked: Sequence[Any]) -> dict[str, Any]:
    """What `lax.scan` is told beside its operands, to run a `scan` again."""
    options = {name: equation.params[name] for name in ("length", "reverse", "unroll")}
    if jax.tree.leaves(stacked):
        # They have the length, which need not be a number: an export may leave it open.
        options["length"] = None
    return options


def split_while(equation, operands: Sequence[Any]) -> tuple[list[Any], list[Any], list[Any]]:
    """The operands of a `while`: constants of its condition, of its body, and the carry."""
    first = equation.params["cond_nconsts"]
    second = first + equation.params["body_nconsts"]
    return list(operands[:first]), list(operands[first:second]), list(operands[second:])


# An array that a loop carries or takes slices of, and what it stands for inside.
Entry = tuple[Any, Callable[[Any], Any]]


class Evaluator:
    """Evaluates programs with values of a kind of its own among the arrays.

    Equations without such values are computed as they are. Control flow is rebuilt around
    programs that are evaluated in the same way. A value that a loop hands on as it came is
    the same value inside. These values are pytrees.
    """

    def special(self, value: Any) -> bool:
        """Whether a value is of the kind that `apply` knows."""
        raise NotImplementedError

    def apply(self, equation, operands: Sequence[Any]) -> Sequence[Any]:
        """The results of an equation, other than control flow, on such values."""
        raise NotImplementedError

    def array(self, value: Any, operation: str) -> Any:
        """The array that a value stands for, which an operation needs."""
        raise NotImplementedError

    def carried(self, value: Any, operation: str) -> Entry:
        """How a value goes through a loop that may change it."""
        return self.array(value, operation), lambda array: array

    def sliced(self, value: Any) -> Entry:
        """How `scan` takes slices of a value."""
        return self.array(value, "scan"), lambda array: array

    def rebuilt(self, results: Sequence[Any], operands: Sequence[Any]) -> list[Any]:
        """The results of control flow, where they are not values that went through."""
        del operands
        return list(results)

    def run(self, jaxpr, consts: Sequence[Any], args: Sequence[Any]) -> list[Any]:
        """The results of a program."""
        return walk(jaxpr, consts, args, self.visit)

    def visit(self, equation, operands: Sequence[Any]) -> Sequence[Any]:
        """The results of an equation."""
        if not any(map(self.special, operands)):
            return bind(equation, operands)
        name = equation.primitive.name
        if inner := inner_program(equation):
            if name in ("checkpoint", "remat2"):
                options = {k: equation.params[k] for k in ("policy", "prevent_cse")}
                return jax.checkpoint(lambda *o: self.run(*inner, o), **options)(*operands)
            return self.run(*inner, operands)
        control = {"scan": self._scan, "while": self._while, "cond": self._cond}.get(name)
        return (control or self.apply)(equation, operands)

    def _arrays(self, jaxpr, consts, args):
        return [self.array(r, "being returned") for r in self.run(jaxpr, consts, args)]

    def _scan(self, equation, operands):
        jaxpr, closed = open_jaxpr(equation.params["jaxpr"])
        consts, carry, xs = split_scan(equation, operands)
        loop = _Loop(self, "the carry of scan", jaxpr, len(consts), carry)
        entries = [self.sliced(x) for x in xs]

        def body(arrays, slices):
            slices = [inside(part) for (_, inside), part in zip(entries, slices, strict=True)]
            results = self.run(jaxpr, closed, (*consts, *loop.inside(arrays), *slices))
            ys = [self.array(r, "being returned") for r in results[len(carry) :]]
            return loop.next(results[: len(carry)]), ys

        stacked = [array for array, _ in entries]
        arrays, ys = lax.scan(body, loop.start, stacked, **scan_options(equation, stacked))
        return [*loop.end(arrays, operands), *self.rebuilt(ys, operands)]

    def _while(self, equation, operands):
        params = equation.params
        cond, cond_closed = open_jaxpr(params["cond_jaxpr"])
        body, body_closed = open_jaxpr(params["body_jaxpr"])
        cond_consts, body_consts, carry = split_while(equation, operands)
        loop = _Loop(self, "the carry of while", body, len(body_consts), carry)
        arrays = lax.while_loop(
            lambda a: self._arrays(cond, cond_closed, (*cond_consts, *loop.inside(a)))[0],
            lambda a: loop.next(self.run(body, body_closed, (*body_consts, *loop.inside(a)))),
            loop.start,
        )
        return loop.end(arrays, operands)

    def _cond(self, equation, operands):
        def branch(jaxpr):
            return lambda *operands: self._arrays(*open_jaxpr(jaxpr), operands)

        which, *rest = operands
        branches = [branch(jaxpr) for jaxpr in equation.params["branches"]]
        results = lax.switch(self.array(which, "cond"), branches, *rest)
        return self.rebuilt(results, operands)


class _Loop:
    """What a loop carries: arrays that change, and values that go round as they came."""

    def __init__(self, evaluator, operation, body, consts, carry):
        self.evaluator, self.carry = evaluator, carry
        variables = body.invars[consts:]
        self.still = [body.outvars[i] is variables[i] for i in range(len(carry))]
        moving = [value for value, still in zip(carry, self.still, strict=True) if not still]
        self.entries = [evaluator.carried(value, operation) for value in moving]
        self.start = [array for array, _ in self.entries]

    def inside(self, arrays):
        """The values that the body takes."""
        return self._whole([e(a) for (_, e), a in zip(self.entries, arrays, strict=True)])

    def next(self, results):
        """The arrays of the next turn."""
        moving = (r for r, still in zip(results, self.still, strict=True) if not still)
        return [self.evaluator.array(r, "being returned") for r in moving]

    def end(self, arrays, operands):
        """What comes out of the loop."""
        return self._whole(self.evaluator.rebuilt(arrays, operands))

    def _whole(self, moving):
        moving = iter(moving)
        return [c if s else next(moving) for c, s in zip(self.carry, self.still, strict=True)]
