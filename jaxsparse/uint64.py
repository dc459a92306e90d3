"""Unsigned 64-bit integers as two 32-bit words, because JAX has none by default.

Counts over a whole model pass 2^31, and round(sparsity * size) must be exact
where float32 is not.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Integer, UInt

WORD = 0xFFFFFFFF


class UInt64(NamedTuple):
    """high * 2^32 + low, elementwise."""

    high: UInt[Array, "..."]
    low: UInt[Array, "..."]

    @classmethod
    def of(cls, value: int) -> "UInt64":
        """A Python integer below 2^64."""
        return cls(jnp.uint32(value >> 32), jnp.uint32(value & WORD))

    def __add__(self, other: "UInt64") -> "UInt64":  # pyright: ignore[reportIncompatibleMethodOverride]
        low = self.low + other.low
        return UInt64(self.high + other.high + (low < other.low).astype(jnp.uint32), low)

    def __sub__(self, other: "UInt64") -> "UInt64":
        borrow = (self.low < other.low).astype(jnp.uint32)
        return UInt64(self.high - other.high - borrow, self.low - other.low)

    def __ge__(self, other: "UInt64") -> Array:  # pyright: ignore[reportIncompatibleMethodOverride]
        return (self.high > other.high) | ((self.high == other.high) & (self.low >= other.low))

    def doubled(self) -> "UInt64":
        """Twice the value, modulo 2^64."""
        return UInt64((self.high << 1) | (self.low >> 31), self.low << 1)

    def clamp32(self) -> UInt[Array, "..."]:
        """The value as uint32, saturating."""
        return jnp.where(self.high > 0, jnp.uint32(WORD), self.low)


def product(a: Integer[Array, "..."], b: Integer[Array, "..."] | int) -> UInt64:
    """Returns the exact product of two uint32, by 16-bit halves."""
    a, b = jnp.asarray(a, jnp.uint32), jnp.asarray(b, jnp.uint32)
    a_high, a_low, b_high, b_low = a >> 16, a & 0xFFFF, b >> 16, b & 0xFFFF
    middle = a_high * b_low + (a_low * b_low >> 16)  # at most 2^32 - 2^16: no overflow
    other = a_low * b_high + (middle & 0xFFFF)
    low = (other << 16) | (a_low * b_low & 0xFFFF)
    return UInt64(a_high * b_high + (middle >> 16) + (other >> 16), low)


def total(parts: list[UInt64]) -> UInt64:
    """Returns the sum over all elements of all parts."""
    halves = jnp.zeros(4, jnp.uint32)
    for part in parts:
        # Sums of 16-bit halves cannot overflow below 2^16 elements a part.
        pieces = (part.low & 0xFFFF, part.low >> 16, part.high & 0xFFFF, part.high >> 16)
        sums = jnp.stack([jnp.sum(piece, dtype=jnp.uint32) for piece in pieces])
        halves = _carry(halves + _carry(sums))
    return UInt64(halves[3] << 16 | halves[2], halves[1] << 16 | halves[0])


def _carry(halves: UInt[Array, "4"]) -> UInt[Array, "4"]:
    digits, carry = [], jnp.uint32(0)
    for half in halves:
        value = half + carry
        digits.append(value & 0xFFFF)
        carry = value >> 16
    return jnp.stack(digits)


def rounded_share(fraction: Array, size: int) -> UInt64:
    """Returns round(fraction * size), halves to even, for a float32 fraction in [0, 1].

    Exact for fractions from 2^-8 up; smaller ones are first rounded to 2^-31.
    """
    units = jnp.round(jnp.asarray(fraction, jnp.float32) * 2.0**31).astype(jnp.uint32)
    whole, rest = product(units, jnp.uint32(size & WORD)).doubled()  # of 2^-32
    half = jnp.uint32(1 << 31)
    up = (rest > half) | ((rest == half) & (whole % 2 == 1))
    above = product(units, jnp.uint32(size >> 32)).doubled()
    return above + UInt64(jnp.uint32(0), whole) + UInt64(jnp.uint32(0), up.astype(jnp.uint32))
