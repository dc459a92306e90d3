"""Sizes of axes as polynomials in how many units the groups of a model keep."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

# Names of groups, each as often as it is a factor.
Monomial = tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Polynomial:
    """A sum of products of widths, with whole coefficients.

    Attributes:
      terms: by monomial its coefficient; `()` is the constant one.

    Example:
      >>> area = Polynomial.of("a", 2) * Polynomial.of("b", 3)
      >>> (area + Polynomial.constant(1))({"a": 4, "b": 5})
      121
    """

    terms: tuple[tuple[Monomial, int], ...]

    @classmethod
    def constant(cls, number: int) -> Polynomial:
        """The same for all widths."""
        return cls((((), number),) if number else ())

    @classmethod
    def of(cls, name: str, number: int = 1) -> Polynomial:
        """A multiple of a group's width."""
        return cls((((name,), number),) if number else ())

    def __call__(self, widths: Mapping[str, Any]) -> Any:
        """The value for the width of every group in it: whole numbers, or arrays of them."""
        total: Any = 0
        for names, number in self.terms:
            for name in names:
                number = number * widths[name]
            total = total + number
        return total

    def __add__(self, other: Polynomial) -> Polynomial:
        return total([self, other])

    def __mul__(self, other: Polynomial | int) -> Polynomial:
        if isinstance(other, int):
            other = Polynomial.constant(other)
        found: Counter[Monomial] = Counter()
        for names, number in self.terms:
            for others, factor in other.terms:
                found[tuple(sorted(names + others))] += number * factor
        return Polynomial(tuple(found.items()))


def total(polynomials: Iterable[Polynomial]) -> Polynomial:
    """The sum of some."""
    found: Counter[Monomial] = Counter()
    for polynomial in polynomials:
        for names, number in polynomial.terms:
            found[names] += number
    return Polynomial(tuple(found.items()))


def product(polynomials: Iterable[Polynomial]) -> Polynomial:
    """The product of some."""
    found = Polynomial.constant(1)
    for polynomial in polynomials:
        found = found * polynomial
    return found
