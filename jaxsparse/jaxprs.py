"""A walk over a traced program: what `sparsify`, `products` and the channel graph stand on.

Control flow is met in three ways. `programs` lists the programs that an equation runs;
`rebuild` runs them again, with values of any kind among the arrays; `interpret` evaluates
them on what is known of arrays rather than on arrays.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

import jax
from jax import lax
from jax.extend import core

Program = tuple[Any, Sequence[Any]]  # an open jaxpr and the values of its constants
Visit = Callable[[Any, list[Any]], Sequence[Any]]
# Called as run(number, operands): what one of the programs of an equation returns, by its
# place in `programs`; -1 is the body of a loop.
Run = Callable[[int, Sequence[Any]], Sequence[Any]]
T = TypeVar("T")

_REMAT = ("checkpoint", "remat2")
CONTROL = ("scan", "while", "cond")
# By primitive the parameters that hold the programs which it runs. All but CONTROL run one
# program once, on the operands they have.
_PROGRAMS = {
    "scan": ("jaxpr",),
    "while": ("cond_jaxpr", "body_jaxpr"),
    "cond": ("branches",),
    "jit": ("jaxpr",),
    "pjit": ("jaxpr",),
    "closed_call": ("call_jaxpr",),
    "core_call": ("call_jaxpr",),
    "checkpoint": ("jaxpr",),
    "remat2": ("jaxpr",),
    "custom_jvp_call": ("call_jaxpr",),
    "custom_vjp_call": ("call_jaxpr",),
    "custom_vjp_call_jaxpr": ("fun_jaxpr",),
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


def table(rules: dict[str, Any]) -> Callable[[str], Callable[[T], T]]:
    """The decorator that enters a function into a table of rules, under names of primitives.

    >>> rules = {}
    >>> rule = table(rules)
    >>> @rule("exp log")
    ... def elementwise(x):
    ...     return x
    >>> sorted(rules)
    ['exp', 'log']
    """

    def rule(names: str) -> Callable[[T], T]:
        def enter(function: T) -> T:
            rules.update(dict.fromkeys(names.split(), function))
            return function

        return enter

    return rule


def walk(program: Program, args: Sequence[Any], visit: Visit) -> list[Any]:
    """Evaluates a program with values of any kind.

    Args:
      program: an open jaxpr, and the values of its constants.
      args: values of its arguments.
      visit: called as visit(equation, values of its operands) for every equation
        in order; returns the values of its results.

    Returns:
      The values of the program's results.
    """
    jaxpr, consts = program
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


def opened(jaxpr) -> Program:
    """A jaxpr, closed or open, and its constants."""
    return (jaxpr.jaxpr, jaxpr.consts) if isinstance(jaxpr, core.ClosedJaxpr) else (jaxpr, ())


def programs(equation) -> list[Program]:
    """The programs that an equation runs: of `while` condition and body, of `cond` the branches."""
    found = []
    for name in _PROGRAMS.get(equation.primitive.name, ()):
        held = equation.params.get(name, ())
        found += held if isinstance(held, tuple) else [held]
    return [opened(jaxpr) for jaxpr in found]


def split_loop(equation, operands: Sequence[T]) -> tuple[list[T], list[T], list[T], list[T]]:
    """The operands of a `while` or `scan`.

    Returns:
      Constants of the condition, constants of the body, the carry, and what `scan` takes
      slices of.
    """
    params, operands = equation.params, list(operands)
    if equation.primitive.name == "while":
        first, second, third = params["cond_nconsts"], params["body_nconsts"], len(operands)
    elif "ft_in" in params:  # jax 0.11 and later
        first, (second, third) = 0, [len(part) for part in params["ft_in"].unpack()][:2]
    else:
        first, second, third = 0, params["num_consts"], params["num_carry"]
    second += first
    third += second
    return operands[:first], operands[first:second], operands[second:third], operands[third:]


class Boundary:
    """What values become at the borders of control flow that is rebuilt; of arrays, themselves.

    Attributes:
      state: a pytree of arrays that `run` may exchange; it goes through loops and branches
        with all else.
    """

    state: Any = ()

    def array(self, value: Any, operation: str) -> Any:
        """The array that a value stands for, which an operation needs."""
        del operation
        return value

    def arrays(self, results: Sequence[Any]) -> list[Any]:
        """The arrays that a program returns."""
        return [self.array(result, "being returned") for result in results]

    def carried(self, array: Any) -> Any:
        """What an array that a loop may change stands for inside."""
        return array

    def stack(self, value: Any) -> Any:
        """The arrays, a pytree, of which `scan` takes slices for a value."""
        return self.array(value, "scan")

    def slice(self, arrays: Any) -> Any:
        """What a slice of `stack` stands for inside."""
        return arrays

    def result(self, array: Any, operands: Sequence[Any]) -> Any:
        """What an array stands for that control flow on some operands returned."""
        del operands
        return array


def rebuild(equation, operands: Sequence[Any], run: Run, border: Boundary) -> list[Any]:
    """Runs the programs of an equation again, in the control flow that it stands for.

    A value that a loop hands on as it came is the same value inside and after it.

    Args:
      equation: one that has `programs`.
      operands: arrays, or values of a kind of their own, which are pytrees.
      run: evaluates one of the programs.
      border: of these values.

    Returns:
      The results.
    """
    name, params = equation.primitive.name, equation.params
    if name in ("scan", "while"):
        return _rebuilt_loop(equation, operands, run, border)

    def part(number, finish):
        def call(state, *operands):
            border.state = state
            return finish(run(number, operands)), border.state

        return call

    if name in _REMAT:
        options = {option: params[option] for option in ("policy", "prevent_cse")}
        again = jax.checkpoint(part(0, list), **options)
        results, border.state = again(border.state, *operands)
        return results
    if name == "cond":
        which, *rest = operands
        branches = [part(i, border.arrays) for i in range(len(params["branches"]))]
        switch = border.array(which, "cond")
        results, border.state = lax.switch(switch, branches, border.state, *rest)
        return [border.result(result, operands) for result in results]
    return list(run(0, operands))


def _rebuilt_loop(equation, operands, run, border):
    name, params = equation.primitive.name, equation.params
    asked, consts, carry, stacked = split_loop(equation, operands)
    body, _ = programs(equation)[-1]
    given = body.invars[len(consts) :]
    still = [body.outvars[i] is given[i] for i in range(len(carry))]

    def moving(values):
        return [value for value, s in zip(values, still, strict=True) if not s]

    def whole(changed):
        changed = iter(changed)
        return [value if s else next(changed) for value, s in zip(carry, still, strict=True)]

    def turn(carried, slices):
        changed, border.state = carried
        inside = [*whole(map(border.carried, changed)), *map(border.slice, slices)]
        results = run(-1, [*consts, *inside])
        changed = border.arrays(moving(results[: len(carry)]))
        ys = border.arrays(results[len(carry) :])
        return (changed, border.state), ys

    def goes_on(carried):
        changed, border.state = carried
        return border.arrays(run(0, [*asked, *whole(map(border.carried, changed))]))[0]

    start = [border.array(value, f"the carry of {name}") for value in moving(carry)], border.state
    if name == "scan":
        stacks = [border.stack(value) for value in stacked]
        options = {option: params[option] for option in ("length", "reverse", "unroll")}
        if jax.tree.leaves(stacks):
            # They have the length, which need not be a number: an export may leave it open.
            options["length"] = None
        (changed, border.state), ys = lax.scan(turn, start, stacks, **options)
    else:
        ys = []
        changed, border.state = lax.while_loop(goes_on, lambda c: turn(c, [])[0], start)
    changed, ys = ([border.result(a, operands) for a in part] for part in (changed, ys))
    return [*whole(changed), *ys]


class Domain(Protocol[T]):
    """What may be known of an array, of which `interpret` asks."""

    def join(self, values: Sequence[T], others: Sequence[T]) -> list[T]:
        """What is known of arrays that are the ones or the others."""
        ...

    def settle(self, step: Callable[[list[T]], Sequence[T]], carry: list[T]) -> list[T]:
        """What is known of a carry in every turn, where `step` gives that of the next turn."""
        ...

    def slice(self, value: T) -> T:
        """What is known of any slice along the first axis."""
        ...

    def stack(self, value: T, length: int) -> T:
        """What is known of slices side by side along a new first axis."""
        ...


def interpret(equation, operands: Sequence[T], run: Run, domain: Domain[T]) -> list[T]:
    """What is known of the results of an equation that has `programs`.

    Args:
      equation: as in `rebuild`.
      operands: what is known of them.
      run: evaluates one of the programs on what is known.
      domain: of what can be known.
    """
    name = equation.primitive.name
    if name == "cond":
        first, *others = (run(i, operands[1:]) for i in range(len(equation.params["branches"])))
        for results in others:
            first = domain.join(first, results)
        return list(first)
    if name not in CONTROL:
        return list(run(0, operands))
    asked, consts, carry, stacked = split_loop(equation, operands)
    slices = [domain.slice(value) for value in stacked]

    def step(carry):
        return run(-1, [*consts, *carry, *slices])

    carry = domain.settle(step, carry)
    if name == "while":
        run(0, [*asked, *carry])
    results = step(carry)
    stacks = [domain.stack(value, equation.params["length"]) for value in results[len(carry) :]]
    return [*domain.join(carry, results[: len(carry)]), *stacks]


class Evaluator(Boundary):
    """Evaluates programs with values of a kind of its own among the arrays.

    Equations without such values are computed as they are, control flow is rebuilt around
    programs that are evaluated in the same way. These values are pytrees.
    """

    def special(self, value: Any) -> bool:
        """Whether a value is of the kind that `apply` knows."""
        raise NotImplementedError

    def apply(self, equation, operands: Sequence[Any]) -> Sequence[Any]:
        """The results of an equation, other than control flow, on such values."""
        raise NotImplementedError

    def visit(self, equation, operands: Sequence[Any]) -> Sequence[Any]:
        """The results of an equation."""
        if not any(map(self.special, operands)):
            return bind(equation, operands)
        inner = programs(equation)
        if not inner:
            return self.apply(equation, operands)
        return rebuild(equation, operands, lambda i, o: walk(inner[i], o, self.visit), self)
