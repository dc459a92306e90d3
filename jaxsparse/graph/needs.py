"""Which channels a program needs: those whose removal would change a sum.

A channel leaves a program where a product, a convolution or a reduction takes its
axis away. If there its slice of one factor is zero it adds nothing, and if that
holds wherever it leaves it may go. So zeros are followed through the program: for
every axis of every array, at which positions the whole slice is surely zero.
Numbers are taken to be finite: 0 * x is 0, and 0 / x too.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from jaxtyping import Bool

from jaxsparse import jaxprs
from jaxsparse.graph.axes import others
from jaxsparse.graph.rules import sizes
from jaxsparse.graph.trace import Analysis, Record
from jaxsparse.graph.zero_rules import ZERO_RULES
from jaxsparse.graph.zeros import Zeros

Vector = Bool[np.ndarray, " size"]


def needed(
    analysis: Analysis, leaves: Mapping[str, Zeros], free: Mapping[int, int]
) -> dict[int, Vector]:
    """Which channels of the free atoms a program needs.

    Args:
      analysis: of the program.
      leaves: zeros of the parameters by path.
      free: the atoms in question and their sizes.
    """
    walk = _Walk(analysis, free)
    arguments = analysis.program.jaxpr.invars
    inputs = [Zeros.nothing(sizes(v)) for v in arguments[len(analysis.leaves) :]]
    operands = [*(leaves[path] for path in analysis.leaves), *inputs]
    walk.run(analysis.program.jaxpr, analysis.program.consts, operands, analysis.records)
    return walk.needed


class _Walk:
    def __init__(self, analysis, free):
        self.terms = analysis.terms
        self.needed = {atom: np.zeros(size, bool) for atom, size in free.items()}
        self.noting = True

    def run(self, jaxpr, consts, operands, records: Sequence[Record]) -> list[Zeros]:
        queue = iter(records)

        def visit(equation, operands):
            return self.visit(equation, [_lift(o) for o in operands], next(queue))

        results = jaxprs.walk(jaxpr, [Zeros.array(c) for c in consts], operands, visit)
        return [_lift(result) for result in results]

    def visit(self, equation, operands, record):
        name = equation.primitive.name
        if inner := jaxprs.inner_program(equation):
            return self.run(*inner, operands, record.inner[0])
        if name in ("scan", "while", "cond"):
            return getattr(self, f"_{name}")(equation, operands, record)
        if (rule := ZERO_RULES.get(name)) is not None:
            return list(rule(self, equation, operands, record))
        return [Zeros.nothing(sizes(variable)) for variable in equation.outvars]

    def need(self, term: int, adds: Vector) -> None:
        """Notes that the positions where `adds` is True are needed."""
        if not self.noting or not adds.any():
            return
        for piece in self.terms.pieces(term):
            grid = piece.grid()
            for i, (atom, _, _) in enumerate(piece.factors):
                if atom in self.needed:
                    self.needed[atom] |= adds[grid].any(axis=others(i, grid.ndim))

    def _scan(self, equation, operands, record):
        consts, carry, stacked = jaxprs.split_scan(equation, operands)
        body = jaxprs.open_jaxpr(equation.params["jaxpr"])
        slices = [Zeros.of(z.axes[1:], z.value) for z in stacked]

        def step(carry):
            return self.run(*body, [*consts, *carry, *slices], record.inner[0])

        carry = self._settle(step, carry)
        results = step(carry)
        lead = np.zeros(equation.params["length"], bool)
        stacks = [Zeros.of((lead, *z.axes), z.value) for z in results[len(carry) :]]
        return [*carry, *stacks]

    def _while(self, equation, operands, record):
        cond_consts, body_consts, carry = jaxprs.split_while(equation, operands)
        cond = jaxprs.open_jaxpr(equation.params["cond_jaxpr"])
        body = jaxprs.open_jaxpr(equation.params["body_jaxpr"])

        def step(carry):
            return self.run(*body, [*body_consts, *carry], record.inner[1])

        carry = self._settle(step, carry)
        self.run(*cond, [*cond_consts, *carry], record.inner[0])
        step(carry)
        return carry

    def _settle(self, step: Callable[[list[Zeros]], list[Zeros]], carry: list[Zeros]):
        """What holds of the carry in every round: what one more round leaves true."""
        noting, self.noting = self.noting, False
        while True:
            results = step(carry)
            joined = [_either(a, b) for a, b in zip(carry, results, strict=False)]
            if all(_equal(a, b) for a, b in zip(joined, carry, strict=True)):
                self.noting = noting
                return carry
            carry = joined

    def _cond(self, equation, operands, record):
        results = [
            self.run(*jaxprs.open_jaxpr(branch), operands[1:], inner)
            for branch, inner in zip(equation.params["branches"], record.inner, strict=True)
        ]
        joined = results[0]
        for other in results[1:]:
            joined = [_either(a, b) for a, b in zip(joined, other, strict=True)]
        return joined


def _lift(operand):
    return operand if isinstance(operand, Zeros) else Zeros.array(operand)


def _either(a, b):
    """What is known of an array that is one or the other."""
    same = a.value if a.value is not None and b.value is not None and a.value == b.value else None
    return Zeros(tuple(x & y for x, y in zip(a.axes, b.axes, strict=True)), same)


def _equal(a, b):
    same = (a.value is None) == (b.value is None)
    return same and all(np.array_equal(x, y) for x, y in zip(a.axes, b.axes, strict=True))
