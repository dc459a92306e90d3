"""What decisions cost together, as tables over the options of one or two of them."""

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from fractions import Fraction

import numpy as np

from jaxsparse.allocation.amc.environment import Term

Total = Callable[[Mapping[int, int]], int | float]

# Tables of as many numbers are asked for in full, without looking for a rule in them.
FEW = 64
CHECKS = 32
CLOSE = 1e-9


def terms_of(
    total: Total,
    values: Sequence[Sequence[int]],
    pairs: Iterable[tuple[int, int]],
    names: Sequence[str],
) -> list[Term]:
    """Terms whose sum is what a model costs, whatever the options.

    With T the cost of the whole model, T(a) with one decision and T(a, b) with two taken:

        T + sum of (T(a) - T) + sum over pairs of (T(a, b) - T(a) - T(b) + T)

    which is exact where no three decisions meet in one product.

    Args:
      total: called with the options of some steps, the others being whole.
      values: by step what its options keep, ascending, counted.
      pairs: steps that meet in a layer. Where these do not explain the cost, all pairs are
        asked for.
      names: of the steps, for errors.

    Raises:
      ValueError: a cost that no such sum explains, or that is not finite.

    Example:
      >>> values = [[1, 2], [2, 4]]
      >>> def total(options):
      ...     a, b = (values[step][options.get(step, -1)] for step in (0, 1))
      ...     return 10 + 3 * a * b
      >>> [term.costs.tolist() for term in terms_of(total, values, [(0, 1)], "ab")]
      [34, [-12, 0], [-12, 0], [[6, 0], [0, 0]]]
    """
    whole = total({})
    alone = [
        np.array([total({step: at}) - whole for at in range(len(options))])
        for step, options in enumerate(values)
    ]

    def beside(one: int, other: int, at: int, there: int):
        both = total({one: at, other: there}) - whole
        return both - alone[one][at].item() - alone[other][there].item()

    def table(one: int, other: int) -> np.ndarray:
        sizes = len(values[one]), len(values[other])
        if math.prod(sizes) > FEW:
            found = _straight(lambda a, b: beside(one, other, a, b), values[one], values[other])
            if found is not None:
                return found
        return np.array([[beside(one, other, a, b) for b in range(sizes[1])]
                         for a in range(sizes[0])])  # fmt: skip

    known = {tuple(sorted(pair)) for pair in pairs}
    terms = [Term((), np.array(whole)), *(Term((s,), costs) for s, costs in enumerate(alone))]
    terms += [Term(pair, table(*pair)) for pair in sorted(known)]
    if not _explains(terms, total, values):
        rest = [p for p in itertools.combinations(range(len(values)), 2) if p not in known]
        found = [(pair, table(*pair)) for pair in rest if _meets(beside, pair, values)]
        terms += [Term(pair, costs) for pair, costs in found]
        if not _explains(terms, total, values):
            shown = ", ".join(map(repr, names[:4])) + (", ..." if len(names) > 4 else "")
            raise ValueError(
                f"amc: what {shown} cost together "
                "is no sum over pairs of them: it is not finite, or three meet in one product; "
                "groups= that leaves one out would work"
            )
    return [term for term in terms if not term.steps or term.costs.any()]


def _meets(beside, pair: tuple[int, int], values: Sequence[Sequence[int]]) -> bool:
    sizes = [len(values[step]) for step in pair]
    return any(beside(*pair, *(size * part // 2 for size in sizes)) != 0 for part in (0, 1))


def _straight(beside, first: Sequence[int], second: Sequence[int]) -> np.ndarray | None:
    """k (a - A) (b - B), if that is what is found for whole numbers; None if not."""
    corner = beside(0, 0)
    if not isinstance(corner, int | np.integer):
        return None
    gone = [np.array(v, object) - v[-1] for v in (first, second)]
    if not gone[0][0] or not gone[1][0]:
        return None
    slope = Fraction(int(corner), int(gone[0][0] * gone[1][0]))
    rng = np.random.default_rng(0)
    places = [(int(rng.integers(len(first))), int(rng.integers(len(second)))) for _ in range(8)]
    if any(beside(a, b) != slope * gone[0][a] * gone[1][b] for a, b in places):
        return None
    return np.array([[int(slope * a * b) for b in gone[1]] for a in gone[0]])


def _explains(terms: Sequence[Term], total: Total, values: Sequence[Sequence[int]]) -> bool:
    """Whether the sum of terms is the cost of the least, and of options drawn at random."""
    rng = np.random.default_rng(1)
    drawn = [[int(rng.integers(len(options))) for options in values] for _ in range(CHECKS)]
    for chosen in [[0] * len(values), *drawn]:
        wanted = total(dict(enumerate(chosen)))
        found = sum(term.costs[tuple(chosen[s] for s in term.steps)].item() for term in terms)
        exact = isinstance(wanted, int | np.integer)
        if not (found == wanted if exact else abs(found - wanted) <= CLOSE * abs(wanted)):
            return False
    return True
