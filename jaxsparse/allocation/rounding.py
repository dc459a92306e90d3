"""Costs as whole numbers, so that a budget that holds for these holds for the costs."""

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

# Sums below it are exact in float64, whatever their order.
_EXACT = 2**53
_BITS = 52


def slack_of(total: int | float) -> Fraction:
    """What differences of such totals are rounded by: a budget may be missed by no more.

    >>> slack_of(10**9), float(slack_of(2.0))
    (Fraction(0, 1), 2e-12)
    """
    return Fraction(0) if isinstance(total, int) else abs(Fraction(total)) / 10**12


class Whole(NamedTuple):
    """Costs in a unit of their own.

    Attributes:
      costs: int64, each at least the cost that was given.
      budget: at most the one that was given.
      unit: what one is in the unit that was given.
      exact: whether nothing was rounded.
    """

    costs: list[Int[np.ndarray, "..."]]
    budget: int
    unit: Fraction
    exact: bool


def whole_numbers(costs: Sequence[Any], budget: Any, buckets: int | None = None) -> Whole:
    """Rounds costs up and the budget down, as little as int64 allows.

    Nothing is rounded where costs and budget are whole, or multiples of a power of two that
    leaves their sums below 2^53. Else the unit is 2^-52 of the largest sum, at most, and the
    budget is lower by one of them a cost: so sums hold in float64, too, in whatever order.

    Args:
      costs: arrays, of which one number each is paid at most.
      budget: of their sum.
      buckets: instead the unit is budget / buckets, as SPDY has it (which rounds to nearest).

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
        unit, reserve = limit / buckets, 0
    elif span * fine < (2**62 if fine == 1 else _EXACT):
        unit, reserve = Fraction(1, fine), 0
    else:
        unit = Fraction(2) ** (math.frexp(span)[1] - _BITS)
        reserve = len(arrays)
    found = [[math.ceil(number / unit) for number in numbers] for numbers in exact]
    kept = all(
        number * unit == given
        for numbers, givens in zip(found, exact, strict=True)
        for number, given in zip(numbers, givens, strict=True)
    )
    whole = [
        np.array(numbers, np.int64).reshape(array.shape)
        for numbers, array in zip(found, arrays, strict=True)
    ]
    return Whole(whole, math.floor(limit / unit) - reserve, unit, kept and not reserve)
