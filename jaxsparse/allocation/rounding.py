"""Costs as whole numbers: what keeps a budget of these keeps that of the costs, or the reverse."""

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

# Sums of costs stay below it: int64 holds them.
_MOST = 2**62


def slack_of(total: int | float) -> Fraction:
    """What differences of such totals are rounded by: a budget may be missed by no more.

    >>> slack_of(10**9), float(slack_of(2.0))
    (Fraction(0, 1), 2e-12)
    """
    return Fraction(0) if isinstance(total, int) else abs(Fraction(total)) / 10**12


class Whole(NamedTuple):
    """Costs in a unit of their own.

    Attributes:
      costs: int64.
      budget: of their sum.
      unit: what one is in the unit that was given.
      exact: whether no cost was rounded.
    """

    costs: list[Int[np.ndarray, "..."]]
    budget: int
    unit: Fraction
    exact: bool


def whole_numbers(
    costs: Sequence[Any], budget: Any, buckets: int | None = None, *, down: bool = False
) -> Whole:
    """Costs and budget as little rounded as int64 allows.

    Costs are rounded up and the budget down, so that whatever keeps the budget in whole numbers
    keeps the real one; with `down` the other way round, so that whatever keeps the real one does
    in whole numbers, too. Nothing is rounded where they are multiples of a power of two that
    leaves their sums below 2^62. Else the unit is 2^-61 of the largest sum, at most.

    Args:
      costs: arrays, of which one number each is paid at most.
      budget: of their sum.
      buckets: instead the unit is budget / buckets, as SPDY has it (which rounds to nearest).
      down: see above.

    Example:
      >>> whole_numbers([np.array([0.75, 0.5])], 2.0)[:2]
      ([array([3, 2])], 8)
      >>> whole_numbers([np.array([30.0, 10.0])], 77, buckets=7)[:2]
      ([array([3, 1])], 7)
    """
    arrays = [np.asarray(array) for array in costs]
    exact = [[Fraction(number) for number in array.ravel().tolist()] for array in arrays]
    limit = Fraction(budget)
    span = abs(limit) + sum(max(map(abs, numbers), default=Fraction(0)) for numbers in exact)
    fine = max(number.denominator for number in (limit, *(n for each in exact for n in each)))
    if buckets is not None:
        unit = limit / buckets
    elif span * fine < _MOST:
        unit = Fraction(1, fine)
    else:
        unit = Fraction(2) ** (math.frexp(span)[1] - 61)
    of_cost, of_budget = (math.floor, math.ceil) if down else (math.ceil, math.floor)
    found = [[of_cost(number / unit) for number in numbers] for numbers in exact]
    kept = all(
        number * unit == given
        for numbers, givens in zip(found, exact, strict=True)
        for number, given in zip(numbers, givens, strict=True)
    )
    whole = [
        np.array(numbers, np.int64).reshape(array.shape)
        for numbers, array in zip(found, arrays, strict=True)
    ]
    return Whole(whole, of_budget(limit / unit), unit, kept)
