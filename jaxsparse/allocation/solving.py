"""One option of every variable, with the least loss within a budget: the exact program.

    min Σ_i loss_i(k_i)   with   Σ_i cost_i(k_i) + Σ_i pair_i(k_{i-1}, k_i) ≤ budget

Costs are whole numbers. Variable by variable, all partial choices are kept that can be part of
an optimum: of those that end in the same option no other one costs and loses no more, and for no
price λ ≥ 0 of the budget does a lower bound,

    loss + min over the rest (Σ loss + λ Σ cost) - λ (budget - cost),

pass the loss of a choice that is known already. There are no buckets, and what is found is the
optimum. Where more than `limit` partial choices are left, those with the lowest bounds go on, and
the least bound of what is dropped says how far the optimum can be.
"""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

LIMIT = 2**16
HALVINGS = 60
# Prices around the best one, at which bounds are taken.
FACTORS = (0.0, 0.5, 0.8, 0.9, 0.95, 0.98, 1.0, 1.02, 1.05, 1.1, 1.25, 2.0)

Losses = Sequence[Float[np.ndarray, "_"]]
Costs = Sequence[Int[np.ndarray, "_"]]
Pairs = Sequence[Int[np.ndarray, "_ _"] | None]


class Solution(NamedTuple):
    """What `solve` chose.

    Attributes:
      chosen: the option of every variable.
      loss: of all together.
      cost: of all together, within the budget.
      bound: no choice within the budget loses less, up to rounding of float64.
    """

    chosen: tuple[int, ...]
    loss: float
    cost: int
    bound: float

    @property
    def proved(self) -> bool:
        """Whether it is an optimum."""
        return self.loss <= self.bound


class _Rest(NamedTuple):
    """The best of all variables behind one, at one price, by the option of that one.

    Attributes:
      value: loss + price * cost.
      loss, cost: of the choice that has it.
      chosen: the next variable's option.
    """

    value: np.ndarray
    loss: np.ndarray
    cost: np.ndarray
    chosen: np.ndarray


class _Front(NamedTuple):
    """Partial choices by rising cost.

    Attributes:
      cost, loss: so far.
      option: of the last variable.
      before: which partial choice of the variable before it goes on.
    """

    cost: np.ndarray
    loss: np.ndarray
    option: np.ndarray
    before: np.ndarray

    def take(self, where: np.ndarray) -> "_Front":
        return _Front(*(array[where] for array in self))


def solve(
    losses: Losses, costs: Costs, budget: int, pairs: Pairs | None = None, *, limit: int = LIMIT
) -> Solution:
    """The choice with the least loss of those within the budget.

    Of equal ones the cheaper, then that with lower options of the last variables.

    Args:
      losses: of every variable's options, finite.
      costs: int64, whose sums fit into int64.
      budget: of all together.
      pairs: by variable the costs of (option of the one before, its own), None where its own say
        it all. None for none at all.
      limit: of partial choices.

    Raises:
      ValueError: the cheapest choice costs more than the budget.

    Example:
      >>> solve([np.array([0.0, 3.0]), np.array([0.0, 2.0])], [np.array([5, 1])] * 2, 7)
      Solution(chosen=(0, 1), loss=2.0, cost=6, bound=2.0)
    """
    if not losses:
        return Solution((), 0.0, 0, 0.0)
    pairs = [None] * len(losses) if pairs is None else pairs
    least = cheapest(costs, pairs)
    if least > budget:
        raise ValueError(f"the cheapest options cost {least}, over {budget}")
    program = _Program(losses, costs, pairs, budget)
    dropped = np.inf
    fronts: list[_Front] = []
    for at in range(len(losses)):
        fronts.append(program.grown(at, fronts[-1] if fronts else None))
        bounds = program.bounds(fronts)
        where = _undominated(
            fronts[-1], bounds, tied=at + 1 < len(pairs) and pairs[at + 1] is not None
        )
        if len(where) > limit:
            where = where[np.argsort(bounds[where], kind="stable")]
            dropped = min(dropped, float(bounds[where[limit]]))
            where = np.sort(where[:limit])
        fronts[-1] = fronts[-1].take(where)
    chosen, loss, cost = program.best
    return Solution(chosen, loss, cost, min(loss, dropped))


def cheapest(costs: Costs, pairs: Pairs) -> int:
    """What the cheapest choice costs."""
    least = costs[0]
    for paid, pair in zip(costs[1:], pairs[1:], strict=True):
        least = paid + (least.min() if pair is None else (least[:, None] + pair).min(axis=0))
    return int(least.min())


class _Program:
    """Bounds of one problem, and the best choice that is known."""

    def __init__(self, losses: Losses, costs: Costs, pairs: Pairs, budget: int):
        self.losses, self.costs, self.pairs, self.budget = losses, costs, pairs, budget
        self.best: tuple[tuple[int, ...], float, int] = (), np.inf, 0
        self._scale = float(sum(np.abs(values).max() for values in losses))
        self._span = abs(float(budget)) + sum(float(np.abs(paid).max()) for paid in costs)
        self._cheapest = self._rests(1.0, [np.zeros(len(values)) for values in losses])
        price = self._price()
        self._rest = {factor * price: self._rests(factor * price) for factor in FACTORS}

    def slack(self, price: float) -> float:
        """What rounding may do to a bound."""
        return 1e-13 * (self._scale + price * self._span)

    def grown(self, at: int, front: _Front | None) -> _Front:
        """The partial choices with one variable more, those that the budget pays for."""
        loss, cost, pair = self.losses[at], self.costs[at], self.pairs[at]
        options = np.arange(len(loss))
        if front is None:
            grown = _Front(cost, loss, options, np.zeros(len(loss), np.int64))
        else:
            extra = cost[:, None] if pair is None else cost[:, None] + pair.T[:, front.option]
            shape = len(loss), len(front.cost)
            grown = _Front(
                (front.cost + extra).ravel(),
                (front.loss + loss[:, None]).ravel(),
                np.broadcast_to(options[:, None], shape).ravel(),
                np.broadcast_to(np.arange(shape[1]), shape).ravel(),
            )
        return grown.take(grown.cost + self._cheapest[at].cost[grown.option] <= self.budget)

    def bounds(self, fronts: Sequence[_Front]) -> np.ndarray:
        """The least that each of the last front can lose; infinite for what cannot be best.

        Where one of them becomes a better choice by what is best behind it, that is noted.
        """
        front, at = fronts[-1], len(fronts) - 1
        left = self.budget - front.cost
        bounds = np.full(len(left), -np.inf)
        for price, rests in self._rest.items():
            rest, option = rests[at], front.option
            found = front.loss + rest.value[option] - price * left.astype(np.float64)
            bounds = np.maximum(bounds, found - self.slack(price))
            paid = rest.cost[option]
            whole = np.where(paid <= left, front.loss + rest.loss[option], np.inf)
            if len(whole):
                best = int(_first_least(whole, front.cost + paid))
                if whole[best] <= self.best[1]:
                    self._note((*_back(fronts, best), *_on(rests[at:], int(option[best]))))
        return np.where(bounds > self.best[1] + self.slack(0.0), np.inf, bounds)

    def _rests(self, price: float, losses: Losses | None = None) -> list[_Rest]:
        """By variable the best of those behind it, at a price of the budget."""
        losses = self.losses if losses is None else losses
        size = len(losses[-1])
        rests = [
            _Rest(np.zeros(size), np.zeros(size), np.zeros(size, np.int64), np.zeros(size, int))
        ]
        for at in range(len(losses) - 1, 0, -1):
            behind, pair = rests[0], self.pairs[at]
            own = losses[at] + price * self.costs[at] + behind.value
            before = len(losses[at - 1])
            values = np.broadcast_to(own, (before, len(own)))
            paid = np.broadcast_to(self.costs[at] + behind.cost, values.shape)
            if pair is not None:
                values, paid = values + price * pair, paid + pair
            best = _first_least(values, paid)
            rows = np.arange(before)
            lost = (losses[at] + behind.loss)[best]
            rests.insert(0, _Rest(values[rows, best], lost, paid[rows, best], best))
        return rests

    def _price(self) -> float:
        """The lowest price at which the best choice is within the budget; notes that choice."""
        if self._try(0.0):
            return 0.0
        high = self._scale / max(abs(self.budget), 1) or 1.0
        while not self._try(high):
            high *= 4.0
        low = 0.0
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            low, high = (low, middle) if self._try(middle) else (middle, high)
        return high

    def _try(self, price: float) -> bool:
        """Whether the best choice at a price is within the budget."""
        rests = self._rests(price)
        values = self.losses[0] + price * self.costs[0] + rests[0].value
        total = self.costs[0] + rests[0].cost
        first = int(_first_least(values, total))
        if total[first] > self.budget:
            return False
        self._note((first, *_on(rests, first)))
        return True

    def _note(self, chosen: tuple[int, ...]) -> None:
        """Remembers a choice that is better, or as good and cheaper."""
        loss = float(sum(values[k] for values, k in zip(self.losses, chosen, strict=True)))
        cost = sum(int(paid[k]) for paid, k in zip(self.costs, chosen, strict=True))
        steps = zip(self.pairs[1:], itertools.pairwise(chosen), strict=True)
        cost += sum(int(pair[ends]) for pair, ends in steps if pair is not None)
        if (loss, cost) < self.best[1:]:
            self.best = chosen, loss, cost


def _back(fronts: Sequence[_Front], at: int) -> tuple[int, ...]:
    """The options of the partial choice at a place of the last front."""
    chosen = []
    for front in reversed(fronts):
        chosen.append(int(front.option[at]))
        at = int(front.before[at])
    return tuple(reversed(chosen))


def _on(rests: Sequence[_Rest], option: int) -> tuple[int, ...]:
    """The best options behind one."""
    chosen = [option]
    for rest in rests[:-1]:
        chosen.append(int(rest.chosen[chosen[-1]]))
    return tuple(chosen[1:])


def _first_least(values: np.ndarray, costs: np.ndarray) -> np.ndarray:
    """By row the place of the least value, of equal ones the cheapest."""
    least = values.min(axis=-1, keepdims=True)
    return np.argmin(np.where(values <= least, costs, np.iinfo(np.int64).max), axis=-1)


def _undominated(front: _Front, bounds: np.ndarray, tied: bool) -> np.ndarray:
    """The places of those with finite bounds that no other one beats, by rising cost.

    With `tied` they only compete with those of the same option.
    """
    where = np.flatnonzero(np.isfinite(bounds))
    if not len(where):
        return where
    option = front.option[where] if tied else np.zeros(len(where), np.int64)
    order = np.lexsort((front.loss[where], front.cost[where], option))
    where, option = where[order], option[order]
    kept = []
    for same in np.split(where, np.flatnonzero(np.diff(option)) + 1):
        loss = front.loss[same]
        kept.append(same[np.append(True, loss[1:] < np.minimum.accumulate(loss)[:-1])])
    return np.concatenate(kept)
