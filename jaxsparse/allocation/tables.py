"""What every leaf loses and costs at several sparsities, checked, and the best choice of them."""

import dataclasses
import functools
import math
import numbers
from collections.abc import Collection, Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
from jaxtyping import Float

from jaxsparse.allocation.allocation import Allocation
from jaxsparse.allocation.costs.flops import Cost
from jaxsparse.allocation.rounding import Whole, slack_of, whole_numbers
from jaxsparse.allocation.solving import LIMIT, Solution, cheapest, solve
from jaxsparse.patterns.base import check_sparsity
from jaxsparse.trees import near_misses

Losses = Mapping[str, Sequence[float] | Float[np.ndarray, "_"]]
Levels = Sequence[float] | Mapping[str, Sequence[float]]
Costs = Losses | Cost


@dataclasses.dataclass(frozen=True, eq=False)
class Table:
    """A problem of allocation.

    Attributes:
      paths: of the leaves.
      levels: by leaf the sparsities that it may get.
      losses: by leaf what it loses at each.
      costs: by leaf what it costs at each; with a `cost` what the whole program then costs more
        than dense.
      budget: of all costs.
      cost: what the costs were asked from, None where they were given.
      buckets: into which the budget is cut, None for none.
    """

    paths: tuple[str, ...]
    levels: tuple[tuple[float, ...], ...]
    losses: tuple[Float[np.ndarray, "_"], ...]
    costs: tuple[tuple[int | float, ...], ...]
    budget: int | float
    cost: Cost | None = None
    buckets: int | None = None

    @functools.cached_property
    def whole(self) -> Whole:
        """The costs, and what the budget leaves for them, as whole numbers that keep it."""
        return whole_numbers(self.costs, Fraction(self.budget) - self._dense, self.buckets)

    @functools.cached_property
    def relaxed(self) -> Whole:
        """The same, rounded the other way: all choices within the budget are within this one.

        Sums of floats are within it where they round to it, by half of its last place, and
        differences of totals by what these are rounded.
        """
        limit = Fraction(self.budget) - self._dense
        if any(isinstance(each, float) for paid in (*self.costs, [self.budget]) for each in paid):
            limit += Fraction(math.ulp(float(self.budget))) / 2
        if self.cost is not None:
            limit += slack_of(_plain(self.cost.total()))
        return whole_numbers(self.costs, limit, down=True)

    @property
    def _dense(self) -> Fraction:
        return Fraction(_plain(self.cost.total())) if self.cost else Fraction(0)

    def solve(
        self, factors: Sequence[float] | np.ndarray | None = None, limit: int = LIMIT
    ) -> Solution:
        """The choice with the least loss, that of each leaf times a factor, within the budget.

        Where what single leaves save does not add up to what they save together, sums that are
        within the budget have to be lower until the whole is, too: then nothing is proved, and
        `bound` is -inf.

        Raises:
          ValueError: no choice is within the budget.
        """
        losses, bound = self.losses, math.inf
        if factors is not None:
            losses = [loss * factor for loss, factor in zip(losses, factors, strict=True)]
        if self.buckets is None:
            most = self.relaxed
            for less in (0, 1):  # what is half-way to the next float may round to that
                if _cheapest(most) > most.budget - less:
                    break
                found = solve(losses, most.costs, most.budget - less, limit=limit)
                if not less or (most.exact and self.cost is None):
                    bound = found.bound
                if not self.over(found.chosen):
                    return found._replace(bound=bound)
        whole, lowered = self.whole, 0
        while _cheapest(whole) <= whole.budget - lowered:
            found = solve(losses, whole.costs, whole.budget - lowered, limit=limit)
            over = Fraction(self.paid(found.chosen)) - Fraction(self.budget)
            if over <= 0:
                return found._replace(bound=-math.inf if lowered else min(bound, found.bound))
            lowered += math.ceil(over / whole.unit)
        # No sum is within it, but the whole may be.
        lowest = self.lowest
        if self.buckets is not None or self.over(lowest):
            enough = "that" if self.buckets is None else "more buckets, or a little more,"
            raise ValueError(
                f"budget={self.budget} is out of reach: with every leaf at its cheapest level "
                f"{self.paid(lowest)} is left; {enough} would work"
            )
        return Solution(lowest, self.lost(lowest), _cheapest(whole), -math.inf)

    @property
    def lowest(self) -> tuple[int, ...]:
        """Every leaf at its cheapest level."""
        return tuple(int(np.argmin(paid)) for paid in self.whole.costs)

    def adds_up(self, chosen: Sequence[int]) -> bool:
        """Whether a choice costs what its leaves cost together."""
        if self.cost is None:
            return True
        parts = [paid[k] for paid, k in zip(self.costs, chosen, strict=True)]
        return math.isclose(_sum([self.cost.total(), *parts]), self.paid(chosen), rel_tol=1e-9)

    def paid(self, chosen: Sequence[int]) -> int | float:
        """What a choice costs in truth."""
        if self.cost is not None:
            shares = self.sparsities(chosen).items()
            return _plain(self.cost.total(densities={path: 1 - share for path, share in shares}))
        return _sum([paid[k] for paid, k in zip(self.costs, chosen, strict=True)])

    def over(self, chosen: Sequence[int]) -> bool:
        """Whether a choice costs more than the budget."""
        return self.paid(chosen) > self.budget

    def lost(self, chosen: Sequence[int]) -> float:
        """What a choice loses, by the table."""
        return float(sum(loss[k] for loss, k in zip(self.losses, chosen, strict=True)))

    def sparsities(self, chosen: Sequence[int]) -> dict[str, float]:
        """By path the sparsity of a choice."""
        levels = zip(self.paths, self.levels, chosen, strict=True)
        return {path: shares[k] for path, shares, k in levels}

    def allocation(self, chosen: Sequence[int], **about: str | float | bool) -> Allocation:
        """A choice, with what it loses and costs."""
        said = {"loss": self.lost(chosen), "cost": self.paid(chosen), "budget": self.budget}
        unit = {} if self.cost is None else {"unit": self.cost.unit}
        return Allocation(self.sparsities(chosen), about=about | said | unit)


def table(
    losses: Losses,
    costs: Costs,
    budget: float,
    levels: Levels,
    buckets: int | None = None,
) -> Table:
    """A table of what `exact` takes.

    Raises:
      ValueError, TypeError: as `exact`.
    """
    if not isinstance(losses, Mapping) or not losses:
        raise ValueError(f"losses is {losses!r}; a number for each level by path would work")
    shares = levels_of(levels, losses)
    lost = {path: _numbers("losses", path, losses[path], shares[path]) for path in losses}
    if isinstance(costs, Mapping):
        for path in costs:
            if path not in losses:
                raise ValueError(f"costs of {path!r}, but no losses; {near_misses(path, losses)}")
        for path in losses:
            if path not in costs:
                raise ValueError(f"losses of {path!r}, but no costs; {near_misses(path, costs)}")
        paid = {path: _numbers("costs", path, costs[path], shares[path]) for path in losses}
    elif hasattr(costs, "total"):
        dense = _plain(costs.total())
        paid = {
            path: [_plain(costs.total(densities={path: 1 - s})) - dense for s in shares[path]]
            for path in losses
        }
    else:
        raise TypeError(
            f"costs is {type(costs).__name__}; numbers by path, or a cost with total(), would work"
        )
    for path, numbers_ in paid.items():
        if not all(map(math.isfinite, numbers_)):
            raise ValueError(f"costs[{path!r}] = {numbers_}: all of them have to be finite")
    check_budget(budget)
    if buckets is not None:
        _check_buckets(buckets, budget, min(map(min, paid.values())))
    free = {path: [k for k, loss in enumerate(lost[path]) if loss < math.inf] for path in lost}
    for path, left in free.items():
        if not left:
            raise ValueError(f"losses[{path!r}] are infinite at every level, which leaves none")
    return Table(
        tuple(losses),
        tuple(tuple(shares[path][k] for k in free[path]) for path in losses),
        tuple(np.array([lost[path][k] for k in free[path]], np.float64) for path in losses),
        tuple(tuple(paid[path][k] for k in free[path]) for path in losses),
        _plain(budget),
        None if isinstance(costs, Mapping) else costs,
        buckets,
    )


def levels_of(levels: Levels, paths: Collection[str]) -> dict[str, tuple[float, ...]]:
    """The levels of every path.

    Raises:
      ValueError: a path without, a level outside [0, 1), or one that is there twice.
    """
    if isinstance(levels, Mapping):
        for path in paths:
            if path not in levels:
                raise ValueError(f"no levels of {path!r}; {near_misses(path, levels)}")
        found = {path: tuple(map(float, levels[path])) for path in paths}
    else:
        found = dict.fromkeys(paths, tuple(map(float, levels)))
    for path, shares in found.items():
        for share in shares:
            check_sparsity(f"levels of {path!r}", share)
        if not shares or len(set(shares)) < len(shares):
            raise ValueError(f"levels of {path!r} are {shares}; sparsities, each once, would work")
    return found


def _numbers(what: str, path: str, given: Any, levels: Sequence[float]) -> list[int | float]:
    found = np.asarray(given)
    if found.shape != (len(levels),) or found.dtype.kind not in "iuf":
        raise ValueError(
            f"{what}[{path!r}] of shape {found.shape} and dtype {found.dtype}: a number for each "
            f"of the {len(levels)} levels {levels} would work"
        )
    if np.isnan(found).any() or (found == -np.inf).any():
        raise ValueError(f"{what}[{path!r}] = {found.tolist()} has NaN or -inf")
    return found.tolist()


def check_budget(budget: Any) -> None:
    """Raises TypeError on what is no number, ValueError on what is not finite."""
    if isinstance(budget, bool) or not isinstance(budget, numbers.Real):
        raise TypeError(f"budget is {budget!r}; a number would work")
    if not math.isfinite(budget):
        raise ValueError(f"budget is {budget}; a finite number would work")


def _check_buckets(buckets: Any, budget: float, least: float) -> None:
    if not isinstance(buckets, numbers.Integral) or buckets < 1:
        raise ValueError(f"buckets={buckets!r}; None, or 10000, would work")
    if budget <= 0 or least < 0:
        raise ValueError(
            f"buckets={buckets} need a table of costs of at least 0, and a budget above 0"
        )


def _cheapest(whole: Whole) -> int:
    return cheapest(whole.costs, [None] * len(whole.costs))


def _plain(number: Any) -> int | float:
    """Python's own, of numpy's and others."""
    return int(number) if isinstance(number, numbers.Integral) else float(number)


def _sum(paid: Sequence[int | float]) -> int | float:
    return math.fsum(paid) if any(isinstance(each, float) for each in paid) else sum(paid)
