"""What every method of a search is given: a trained model, what it costs, what it may cost."""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any

from experiments.data import Split
from experiments.search.tuning import Tune
from jaxsparse.allocation import Cost
from jaxsparse.graph import Structure


@dataclasses.dataclass(frozen=True)
class Limits:
    """Which widths the groups of a model may have: multiples of a divisor, from a lowest one on.

    Attributes:
      units: how many each group has, by name.
      divisor: of the widths; a group that is narrower is whole or not touched.
      lowest: the share of its units that every group keeps at least.
    """

    units: Mapping[str, int]
    divisor: int
    lowest: float

    def least(self) -> dict[str, int]:
        """The lowest width of every group."""
        found = {}
        for name, units in self.units.items():
            steps = max(1, -(-int(1e9 * self.lowest * units) // (10**9 * self.divisor)))
            found[name] = min(units, steps * self.divisor)
        return found

    def at(self, share: Fraction | float) -> dict[str, int]:
        """The widths of groups that are all scaled alike, rounded down.

        >>> Limits({"a": 32, "b": 20}, 8, 0.25).at(0.75)
        {'a': 24, 'b': 8}
        """
        if share >= 1:
            return dict(self.units)
        least = self.least()
        steps = {name: int(share * units) // self.divisor for name, units in self.units.items()}
        return {name: max(n * self.divisor, least[name]) for name, n in steps.items()}

    def shares(self) -> list[Fraction]:
        """Where `at` changes, from 1 down."""
        found = {
            Fraction(width, units)
            for units in set(self.units.values())
            for width in range(self.divisor, units + 1, self.divisor)
        }
        return sorted({Fraction(1), *found}, reverse=True)


@dataclasses.dataclass(frozen=True)
class Problem:
    """A search.

    Attributes:
      fn: (tree, inputs) -> outputs, in evaluation mode.
      tree: the trained weights at "params", statistics of norms at "extra".
      example: inputs of one example.
      structure: the unit groups of the model.
      limits: which widths they may have.
      cost: of the model, by widths.
      budget: that it has to keep.
      validation: examples to choose on.
      evaluate: tree -> accuracy on them; can be traced.
      tune: trains what masks keep.
      folder: where a search may keep what it has so far.
      seed: of what it draws.
      tick: to be called now and then: notes the time spent, for the case of a kill.
    """

    fn: Callable[[Any, Any], Any]
    tree: Any
    example: Any
    structure: Structure
    limits: Limits
    cost: Cost
    budget: float
    validation: Split
    evaluate: Callable[[Any], Any]
    tune: Tune
    folder: pathlib.Path
    seed: int
    tick: Callable[[], None]


def budget_of(cost: Cost, limits: Limits, share: float, width: float) -> float:
    """A budget in the unit of a cost: a share of the dense model's, or that of a width.

    Raises:
      ValueError: it is out of reach of the lowest widths; says what would be in reach.
    """
    dense, least = cost.total(), cost.total(limits.least())
    wanted = cost.total(limits.at(width)) if width else share * dense
    if wanted < least:
        raise ValueError(
            f"config.budget.share = {share} is {wanted:,.6g} of {dense:,.6g} {cost.unit}, and with "
            f"divisor = {limits.divisor} and lowest = {limits.lowest} the groups cost "
            f"{least:,.6g} at least; a share from {least / dense:.4f} on would work, or lower "
            "bounds"
        )
    return wanted
