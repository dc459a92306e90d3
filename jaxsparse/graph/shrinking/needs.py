"""Which channels a program needs: those whose removal would change a sum.

A channel leaves a program where a product, a convolution or a reduction takes its
axis away. If there its slice of one factor is zero it adds nothing; if it is some other
number whatever the inputs are, what it adds may go into the bias that comes next. If one
of both holds wherever a channel leaves, it may go. So constants are followed through the
program: for every axis of every array, at which positions the slice is surely one number.
Numbers are taken to be finite: 0 * x is 0, and 0 / x too.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool

from jaxsparse import control, jaxprs
from jaxsparse.graph.analysis.constants import Constants, either
from jaxsparse.graph.analysis.registry import CONSTANTS, sizes
from jaxsparse.graph.analysis.rules.products import varying
from jaxsparse.graph.analysis.trace import Analysis
from jaxsparse.graph.analysis.values import Walked
from jaxsparse.graph.shrinking.folding import Followed, Meeting, Product, Tracked, View

Vector = Bool[np.ndarray, "_"]


@dataclasses.dataclass(frozen=True, eq=False)
class Reason:
    """Why channels are needed.

    Attributes:
      channels: True for those it holds for.
      text: what reads them.
      weights: paths of the leaves that they are multiplied with.
    """

    channels: Vector
    text: str
    weights: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Needs:
    """What a program needs.

    Attributes:
      channels: by atom True for those it needs.
      reasons: by atom, one for every place where some are needed.
      folds: products whose constants a leaf can take over, with that leaf.
    """

    channels: dict[int, Vector]
    reasons: dict[int, list[Reason]]
    folds: list[tuple[Product, Meeting]]


def needed(analysis: Analysis, leaves: Mapping[str, Any], free: Mapping[int, int]) -> Needs:
    """Which channels of the free atoms a program needs, and why.

    Args:
      analysis: of the program.
      leaves: the parameters by path, zero where channels have gone.
      free: the atoms in question and their sizes.
    """
    walk = _Walk(analysis, free, _lift)
    inputs = [Tracked(Constants.nothing(shape)) for shape in analysis.inputs]
    operands = [*(_leaf(path, leaves[path]) for path in analysis.leaves), *inputs]
    results = walk.run(analysis.program, operands, analysis.walked)
    for result in results:
        walk.followed.end(result, "its result is an output of the function")
    return Needs(walk.needed, walk.reasons, walk.folds())


def needed_beside(
    analysis: Analysis, zeros: Mapping[str, Mapping[int, Vector]], free: Mapping[int, int]
) -> dict[int, Vector]:
    """By atom the channels that a program needs where some slices of its leaves are zeros.

    The other numbers of the leaves may be any, and those of constants too unless they are
    all one number: what is found holds for one channel as for another.

    Args:
      analysis: of the program.
      zeros: by path and axis of a leaf, True where the slice is zero.
      free: the atoms in question and their sizes.
    """
    walk = _Walk(analysis, free, _lift_any)
    operands = []
    for path, shape in analysis.shapes.items():
        axes = list(Constants.nothing(shape).axes)
        for axis, zero in zeros.get(path, {}).items():
            axes[axis] = np.where(zero, 0, np.nan)
        operands.append(Tracked(Constants.of(axes)))
    operands += [Tracked(Constants.nothing(shape)) for shape in analysis.inputs]
    walk.run(analysis.program, operands, analysis.walked)
    return walk.needed


def _leaf(path, leaf):
    axes = tuple(i if n != 1 else None for i, n in enumerate(np.shape(leaf)))
    return Tracked(Constants.array(leaf), View(path, axes), lambda: leaf)


class _Walk:
    def __init__(self, analysis, free, lift):
        self.lift = lift
        self.terms = analysis.terms
        self.needed = {atom: np.zeros(size, bool) for atom, size in free.items()}
        self.reasons: dict[int, list[Reason]] = {}
        self.followed = Followed()
        self.noting = True
        self.record: Any = None
        self._operands: Sequence[Tracked] = ()
        self._product: Product | None = None

    def run(self, program, operands, walked: Walked) -> list[Tracked]:
        (jaxpr, consts), records = program, iter(walked.records)

        def visit(equation, operands):
            del equation
            return self.visit(next(records), [self.lift(operand) for operand in operands])

        results = jaxprs.walk((jaxpr, [self.lift(c) for c in consts]), operands, visit)
        return [self.lift(result) for result in results]

    def visit(self, record, operands):
        equation, name = record.equation, record.equation.primitive.name
        if inner := jaxprs.programs(equation):
            if name in jaxprs.CONTROL:
                for operand in operands:
                    self.followed.end(operand, f"its result goes into a {name}")
                operands = [Tracked(operand.constants) for operand in operands]

            def run(number, operands):
                return self.run(inner[number], operands, record.inner[number])

            return control.interpret(equation, operands, run, self)
        self.record, self._operands, self._product = record, operands, None
        if rule := CONSTANTS.get(name):
            constants = rule(self, equation, *(operand.constants for operand in operands))
        else:
            constants = [Constants.nothing(sizes(variable)) for variable in equation.outvars]
        view = self.followed.through(equation, operands)
        if self._product is not None:
            number = len(self.followed.products)
            self.followed.products.append(self._product)
            view = View(number, varying(equation, self._product.weight))
        if len(equation.outvars) != 1:
            return [Tracked(known) for known in constants]
        return [Tracked(constants[0], view, _computed(equation, operands))]

    def need(self, term: int, adds: Vector, text: str | None = None) -> None:
        """Notes that the positions where `adds` is True are needed.

        Args:
          term: of an axis.
          adds: by position.
          text: why, after the paths of the weights; without it, that they are read.
        """
        if not self.noting or not adds.any():
            return
        weights = _weights(self.record)
        reason = f"{', '.join(weights)} {text}" if text else _reads(self.record.equation, weights)
        for atom, channels in self.terms.channels(term, adds):
            if atom in self.needed and channels.any():
                self.needed[atom] |= channels
                self.reasons.setdefault(atom, []).append(Reason(channels, reason, weights))

    def weight(self) -> int | None:
        """Which operand of a product is a weight, where the other is not."""
        is_weight = [not value.ops for value in self.record.operands]
        if sum(is_weight) != 1 or self._operands[is_weight.index(True)].array is None:
            return None
        return is_weight.index(True)

    def array(self, operand: int) -> Any:
        """An operand of the equation that is visited as an array, a weight is one."""
        array = self._operands[operand].array
        assert array is not None
        return array()

    def owe(self, term: int, adds: Vector) -> None:
        """Notes constants among what a product sums over.

        They are needed if no leaf takes over what they add.

        Args:
          term: of the axis that is summed over.
          adds: by position.
        """
        if not self.noting or not adds.any():
            return
        weight = self.weight()
        assert weight is not None
        if self._product is None:
            constants, array = self._operands[1 - weight].constants, self._operands[weight].array
            assert array is not None
            self._product = Product(self.record, weight, array, constants)
        self._product.owed.append((term, adds))

    def folds(self) -> list[tuple[Product, Meeting]]:
        """Products whose constants a leaf takes over; those of the others are needed."""
        folds = []
        for product in self.followed.products:
            outcome = self.followed.outcome(product)
            if isinstance(outcome, Meeting):
                folds.append((product, outcome))
                continue
            self.record = product.record
            text = f"reads constants that no bias can take over: {outcome}"
            for term, adds in product.owed:
                self.need(term, adds, text)
        return folds

    # Control flow: what `control.interpret` asks.

    def join(self, values, others):
        """What is known of both."""
        pairs = zip(values, others, strict=True)
        return [Tracked(either(a.constants, b.constants)) for a, b in pairs]

    def settle(self, step, carry):
        """What holds in every turn: what one more turn leaves true."""
        noting, self.noting = self.noting, False
        while True:
            joined = self.join(carry, step(carry)[: len(carry)])
            pairs = zip(joined, carry, strict=True)
            if all(_equal(a.constants, b.constants) for a, b in pairs):
                self.noting = noting
                return carry
            carry = joined

    def slice(self, value):
        """What is known of the other axes."""
        return Tracked(Constants.of(value.constants.axes[1:], value.constants.value))

    def stack(self, value, length):
        """What is known of every slice."""
        known = value.constants
        lead = np.full(length, known.value)
        return Tracked(Constants.of((lead, *known.axes), known.value))


def _lift(operand):
    if isinstance(operand, Tracked):
        return operand
    return Tracked(Constants.array(operand), None, lambda: operand)


def _lift_any(operand):
    """As `_lift`, but of an array of several numbers nothing is known."""
    lifted = _lift(operand)
    if isinstance(operand, Tracked) or not np.isnan(lifted.constants.value):
        return lifted
    return Tracked(Constants.nothing(np.shape(operand)))


def _equal(a, b):
    """Whether as much is known of one as of the other."""
    known = [(a.value, b.value), *zip(a.axes, b.axes, strict=True)]
    return all(np.array_equal(np.isnan(x), np.isnan(y)) for x, y in known)


def _computed(equation, operands):
    """Computes the result of an equation when asked, if its operands can be computed."""
    makers = [operand.array for operand in operands]
    if None in makers or not makers:
        return None
    return functools.cache(lambda: jaxprs.bind(equation, [make() for make in makers])[0])


def _weights(record):
    """Paths of the leaves which a product multiplies with something else."""
    return tuple(dict.fromkeys(p for v in record.operands if not v.ops for p in sorted(v.weights)))


def _reads(equation, weights):
    """What an equation does to the channels that it sums over."""
    name, scope = equation.primitive.name, str(equation.source_info.name_stack)
    where = f" in {scope}" * bool(scope)
    if name in ("dot_general", "conv_general_dilated"):
        return f"{', '.join(weights)} reads them" if weights else f"a product{where} reads them"
    return f"{name}{where} runs over them"
