"""Terms: what unification makes of products and sums."""

import pytest

from jaxsparse.graph.analysis.axes import Terms
from jaxsparse.graph.analysis.pieces import Cause

WHY = Cause("test", "says so")


def described(terms, term):
    """The pieces of a term with atoms by name, in the order of their appearance."""
    names = {}
    return [
        (p.offset, [(names.setdefault(f.atom, len(names)), f.size, f.stride) for f in p.factors])
        for p in terms.pieces(term)
    ]


def test_products_are_cut_to_common_factors():
    terms = Terms()
    left = terms.product([terms.atom(6), terms.atom(4)])
    right = terms.product([terms.atom(2), terms.atom(12)])
    terms.unify(left, right, WHY)
    assert terms.pieces(left) == terms.pieces(right)
    assert described(terms, left) == [(0, [(0, 2, 12), (1, 3, 4), (2, 4, 1)])]


def test_products_without_common_factors_are_pinned():
    terms = Terms()
    left = terms.product([terms.atom(6), terms.atom(4)])
    right = terms.product([terms.atom(4), terms.atom(6)])
    terms.unify(left, right, WHY)
    assert terms.cause(left) == terms.cause(right) == WHY


def test_sums_are_cut_at_every_boundary():
    terms = Terms()
    left = terms.sum([terms.atom(5), terms.atom(3)])
    right = terms.sum([terms.atom(2), terms.atom(6)])
    terms.unify(left, right, WHY)
    assert terms.pieces(left) == terms.pieces(right)
    assert [(o, f[0][1]) for o, f in described(terms, left)] == [(0, 2), (2, 3), (5, 3)]


def test_a_sum_of_products_is_a_product_with_a_sum():
    """Two heads and three heads of four, side by side, are five heads of four."""
    terms = Terms()
    parts = [terms.product([terms.atom(n), terms.atom(4)]) for n in (2, 3)]
    dim = terms.atom(4)
    whole = terms.product([terms.atom(5), dim])
    terms.unify(terms.sum(parts), whole, WHY)
    (_, [heads, first]), (offset, [more, second]) = described(terms, whole)
    assert (heads[1], more[1], offset) == (2, 3, 8)
    assert first == second and first[0] == 1
    assert terms.find(dim) == terms.pieces(parts[0])[0].factors[1].atom
    assert terms.cause(whole) is None


def test_a_sum_that_cuts_through_a_product_pins_its_major_factor():
    terms = Terms()
    major, minor = terms.atom(2), terms.atom(6)
    terms.unify(terms.product([major, minor]), terms.sum([terms.atom(3), terms.atom(9)]), WHY)
    assert terms.cause(major) == WHY
    assert terms.cause(minor) is None
    assert [f[0][1] for _, f in described(terms, minor)] == [3, 3]


def test_pins_reach_what_is_unified_before_and_after():
    terms = Terms()
    first, second, third = (terms.atom(8) for _ in range(3))
    terms.unify(first, second, WHY)
    terms.pin(second, Cause("output", "is an output"))
    terms.unify(first, third, WHY)
    half = terms.atom(4)
    terms.unify(third, terms.sum([half, terms.atom(4)]), WHY)
    assert {str(terms.cause(t)) for t in (first, second, third, half)} == {"is an output"}


def test_a_sum_is_pinned_once_all_its_parts_are():
    terms = Terms()
    parts = [terms.atom(2), terms.atom(3)]
    whole = terms.sum(parts)
    terms.pin(parts[0], WHY)
    assert terms.cause(whole) is None
    terms.pin(parts[1], WHY)
    assert terms.cause(whole) == WHY


@pytest.mark.parametrize("kind", ["product", "sum"])
def test_sizes_that_say_nothing_are_left_out(kind):
    terms = Terms()
    atom = terms.atom(5)
    nothing = terms.atom(1 if kind == "product" else 0)
    assert getattr(terms, kind)([nothing, atom]) == atom
