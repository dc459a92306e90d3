"""Which units of a group go, their number being given: by how their gradients add up."""

import itertools
import math

import numpy as np
from jaxtyping import Bool, Float

SUBSETS = 100_000


def rearrange(
    gradients: Float[np.ndarray, "batches units"],
    kept: Bool[np.ndarray, " units"],
    exhaustive: int = SUBSETS,
) -> Bool[np.ndarray, " units"]:
    """The same number of units, chosen so that what those that go add up to is small.

    Where a set P of units goes, the loss changes to second order by |sum over P of g_u|² / 2,
    g_u the gradients of u's mask in all batches: the Fisher matrix with its entries between
    units, where a search takes its diagonal. From the set P with the least |g_u|²,

        for every other unit u by rising |g_u|²: add u to P, and take out that member of P
        without which |sum over P of g|² is least

    and, where there are at most `exhaustive` sets of this size, the best of all of them.

    Args:
      gradients: of a group's masks, batch by batch.
      kept: which units a search keeps; their number is kept, not the choice.
      exhaustive: how many sets are tried one by one; 0 for the greedy exchange alone.

    Example:
      >>> gradients = np.array([[3.0, 1.0, -3.0, 2.0]])
      >>> rearrange(gradients, np.array([True, False, True, False])).tolist()
      [False, True, False, True]

    References:
      Kwon et al. 2022, arXiv 2204.09656, section 4.3.
    """
    products = gradients.T @ gradients
    units, gone = len(kept), int((~kept).sum())
    if not 0 < gone < units:
        return kept.copy()
    tried = math.comb(units, gone) <= exhaustive
    pruned = _best(products, gone) if tried else _exchanged(products, gone)
    found = np.ones(units, bool)
    found[pruned] = False
    return found


def _best(products: Float[np.ndarray, "units units"], gone: int) -> list[int]:
    units = len(products)
    # The smaller of a set and the rest, whose sum is that of all without the set's.
    size = min(gone, units - gone)
    sets = np.array(list(itertools.combinations(range(units), size))).T
    square = sum(products[i, j] for i in sets for j in sets)
    if size == gone:
        return list(sets[:, np.argmin(square)])
    square = square - 2 * sum(products.sum(1)[i] for i in sets)
    return [unit for unit in range(units) if unit not in sets[:, np.argmin(square)]]


def _exchanged(products: Float[np.ndarray, "units units"], gone: int) -> list[int]:
    norms = np.diag(products)
    order = np.argsort(norms, kind="stable")
    pruned = list(order[:gone])
    with_sum = products[:, pruned].sum(1)  # of every unit with the sum over the set
    for unit in order[gone:]:
        pruned.append(unit)
        with_sum = with_sum + products[:, unit]
        # |s - g|² = |s|² - 2 s·g + |g|², and |s|² is the same for all.
        leaving = pruned.pop(int(np.argmin(norms[pruned] - 2 * with_sum[pruned])))
        with_sum = with_sum - products[:, leaving]
    return pruned
