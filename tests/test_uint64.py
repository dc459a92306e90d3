"""Two-word integers against Python's."""

from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import example, given, settings
from hypothesis import strategies as st

from jaxsparse.uint64 import UInt64, product, rounded_share, total

WORD, TOP = 2**32, 2**64
words = st.one_of(
    st.integers(0, TOP - 1),
    st.sampled_from([0, 1, WORD - 1, WORD, WORD + 1, TOP - 1, TOP - WORD]),
)
halves = st.one_of(st.integers(0, WORD - 1), st.sampled_from([0, 1, 0xFFFF, 0x10000, WORD - 1]))
shares = jax.jit(rounded_share, static_argnums=1)


compute = jax.jit(lambda x, y: (x + y, x - y, x >= y, x.clamp32()))


def value(wide: UInt64) -> int:
    return int(wide.high) * WORD + int(wide.low)


@settings(max_examples=60, deadline=None)
@given(words, words)
@example(WORD - 1, 1)
@example(WORD, 1)
def test_add_subtract_compare(a, b):
    x, y = UInt64.of(a), UInt64.of(b)
    plus, minus, least, clamped = compute(x, y)
    assert value(x) == a
    assert value(plus) == (a + b) % TOP
    assert value(minus) == (a - b) % TOP
    assert bool(least) == (a >= b)
    assert int(clamped) == min(a, WORD - 1)


@settings(max_examples=60, deadline=None)
@given(halves, halves)
@example(WORD - 1, WORD - 1)
@example(0xFFFF0001, 0x0001FFFF)
def test_product(a, b):
    assert value(product(jnp.uint32(a), jnp.uint32(b))) == a * b


@settings(max_examples=20, deadline=None)
@given(st.lists(st.lists(st.integers(0, TOP // 64), min_size=1, max_size=4), max_size=6))
def test_total(parts):
    wides = [
        UInt64(
            jnp.asarray([x >> 32 for x in part], jnp.uint32),
            jnp.asarray([x % WORD for x in part], jnp.uint32),
        )
        for part in parts
    ]
    assert value(total(wides)) == sum(map(sum, parts))


def test_total_of_many_large_counts():
    part = UInt64(jnp.zeros(1 << 16, jnp.uint32), jnp.full(1 << 16, WORD - 1, jnp.uint32))
    assert value(total([part, part, UInt64.of(7)])) == 2 * (WORD - 1) * 2**16 + 7


@settings(max_examples=60, deadline=None)
@given(
    st.floats(2**-7, 1, width=32),
    st.sampled_from([1, 2, 3, 5, 10, 999, 2**20 + 1, 20_000_000, 2**31, WORD - 1, WORD, 3**22]),
)
@example(0.5, 1)
@example(0.5, 3)
@example(0.5, 2**33 + 1)
@example(0.25, 2**40 + 2)
@example(float(np.float32(0.9)), 7 * 10**10)
@example(1.0, 2**40)
def test_share_is_exact_and_halves_go_to_even(fraction, size):
    exact = round(Fraction(float(np.float32(fraction))) * size)  # Python rounds half to even
    assert value(shares(jnp.float32(fraction), size)) == exact


@settings(max_examples=40, deadline=None)
@given(st.floats(0, 2**-7, width=32), st.sampled_from([1, 127, 20_000_000, WORD - 1, 2**33]))
def test_small_fractions_are_within_half_a_unit_of_2_to_the_minus_31(fraction, size):
    got = value(shares(jnp.float32(fraction), size))
    assert abs(got - Fraction(fraction) * size) <= Fraction(1, 2) + Fraction(size, WORD)
