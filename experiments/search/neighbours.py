"""The best widths where a layer costs what the groups on both of its sides say.

With groups in the order of a chain, widths w and base widths b,

    cost(w) = cost(b) + Σ_i own_i(w_i) + Σ_i pair_i(w_{i-1}, w_i),
    own_i(x) = cost(b, w_i = x) - cost(b),
    pair_i(x, y) = cost(b, w_{i-1} = x, w_i = y) - cost(b) - own_{i-1}(x) - own_i(y),

which is exact where no product joins groups that are no neighbours, and is checked in the end.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import NamedTuple

import numpy as np

from jaxsparse.allocation import Cost, solving

# Of a budget that is no whole number; costs are rounded up to them, so that it holds.
_TICKS = 10**9


class Solved(NamedTuple):
    """The best choice.

    Attributes:
      widths: by group.
      loss: the sum of its losses.
      cost: of the model.
      proved: whether no other choice within the budget loses less.
    """

    widths: dict[str, int]
    loss: float
    cost: int | float
    proved: bool


def solve(
    widths: Mapping[str, Sequence[int]],
    losses: Mapping[str, Sequence[float]],
    cost: Cost,
    budget: float,
) -> Solved:
    """The width of every group with the least sum of losses within a budget.

    Args:
      widths: by group, in the order of the model, those that it may have.
      losses: by group what it loses at each of them.
      cost: of the model.
      budget: of it.

    Raises:
      ValueError: the narrowest widths cost more than the budget.
    """
    names = list(widths)
    base = {name: min(each) for name, each in widths.items()}
    least = cost.total(base)
    if least > budget:
        raise ValueError(f"the narrowest widths cost {least:,} of {budget:,.6g} {cost.unit}")
    own = [
        np.array([Fraction(cost.total(base | {name: x})) - Fraction(least) for x in widths[name]])
        for name in names
    ]
    pairs: list[np.ndarray | None] = [None]
    for at, (one, two) in enumerate(itertools.pairwise(names)):
        both = [
            [Fraction(cost.total(base | {one: x, two: y})) - Fraction(least) for y in widths[two]]
            for x in widths[one]
        ]
        pairs.append(np.array(both) - own[at][:, None] - own[at + 1])
    left = Fraction(budget) - Fraction(least)
    exact = all(each.denominator == 1 for paid in own for each in paid)
    unit = Fraction(1) if exact else max(left, Fraction(budget) / _TICKS) / _TICKS

    def whole(values: np.ndarray) -> np.ndarray:
        return np.vectorize(lambda each: math.ceil(each / unit), otypes=[np.int64])(values)

    lost = [np.asarray(losses[name], np.float64) for name in names]
    paid = [whole(each) for each in own]
    joined = [None if each is None else whole(each) for each in pairs]
    lowered = 0
    while True:
        found = solving.solve(lost, paid, math.floor(left / unit) - lowered, joined)
        chosen = {name: widths[name][k] for name, k in zip(names, found.chosen, strict=True)}
        total = cost.total(chosen)
        if total <= budget:
            return Solved(chosen, found.loss, total, found.proved and exact and not lowered)
        # Groups that are no neighbours meet in a product.
        lowered += math.ceil((Fraction(total) - Fraction(budget)) / unit)
