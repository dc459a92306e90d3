"""Control flow, met with values of other kinds than arrays.

`rebuild` runs the programs of an equation again, with such values among the arrays;
`interpret` evaluates them on what is known of arrays rather than on arrays.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
from jax import lax

from jaxsparse import jaxprs

# Called as run(number, operands): what one of the programs of an equation returns, by its
# place in `jaxprs.programs`; -1 is the body of a loop.
Run = Callable[[int, Sequence[Any]], Sequence[Any]]
T = TypeVar("T")
_REMAT = ("checkpoint", "remat2")


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
    asked, consts, carry, stacked = jaxprs.split_loop(equation, operands)
    body, _ = jaxprs.programs(equation)[-1]
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


def interpret(equation, operands: Sequence[T], run: Run, domain: Any) -> list[T]:
    """What is known of the results of an equation that has `programs`.

    Args:
      equation: as in `rebuild`.
      operands: what is known of them.
      run: evaluates one of the programs on what is known.
      domain: of what can be known. It has `join(values, others)`, what is known of arrays that
        are the ones or the others; `settle(step, carry)`, what is known of a carry in every
        turn where `step` gives that of the next; `slice(value)`, of any slice along the first
        axis; and `stack(value, length)`, of such slices side by side.
    """
    name = equation.primitive.name
    if name == "cond":
        first, *others = (run(i, operands[1:]) for i in range(len(equation.params["branches"])))
        for results in others:
            first = domain.join(first, results)
        return list(first)
    if name not in jaxprs.CONTROL:
        return list(run(0, operands))
    asked, consts, carry, stacked = jaxprs.split_loop(equation, operands)
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
            return jaxprs.bind(equation, operands)
        inner = jaxprs.programs(equation)
        if not inner:
            return self.apply(equation, operands)
        return rebuild(equation, operands, lambda i, o: jaxprs.walk(inner[i], o, self.visit), self)
