"""1-swaps: a mask that no exchange of one kept weight for one pruned weight improves.

SparseSwaps, arXiv 2512.10922. In a column with pruned error e (e_j = w_j where pruned, else 0)
and c = G e, pruning k and reviving p changes the loss eᵀ G e by

    (2 w_k c_k + w_k² G_kk) + (w_p² G_pp - 2 w_p c_p) - 2 w_k w_p G_kp
"""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool

from jaxsparse.calibration.layer_loss import Quadratic, matmul


def swap(
    problem: Quadratic, mask: Bool[Array, "k n"], *, group: int | None = None, limit: int = 1000
) -> Bool[Array, "k n"]:
    """Exchanges the best pair of a column while the loss falls; weights stay as they are.

    Every column keeps as many as before, and every group of it, where there are groups.

    Args:
      problem: as `quadratic` makes it.
      mask: of single weights; True is kept.
      group: m of an n:m mask, whose pairs lie in one group of m inputs (the last may be
        shorter); None for any pair.
      limit: exchanges in a column, at most.
    """
    inputs = len(problem.weight)
    diagonal = jnp.diagonal(problem.gram)
    place = jnp.arange(inputs) // (group or inputs)
    together = place[:, None] == place

    def column(weight, kept):
        def best(kept):
            error = jnp.where(kept, 0, weight)
            pull = matmul(problem.gram, error[:, None])[:, 0]
            out = jnp.where(kept, 2 * weight * pull + weight**2 * diagonal, jnp.inf)
            back = jnp.where(kept, jnp.inf, weight**2 * diagonal - 2 * weight * pull)
            both = out[:, None] + back - 2 * jnp.outer(weight, weight) * problem.gram
            both = jnp.where(together, both, jnp.inf)
            pair = jnp.argmin(both)
            # What rounding makes of a loss is no gain.
            floor = -1e-6 * jnp.sum(error * pull)
            return jnp.unravel_index(pair, both.shape), both.ravel()[pair] < floor

        def exchange(state):
            kept, (out, back), _, count = state
            kept = kept.at[out].set(False).at[back].set(True)
            return kept, *best(kept), count + 1

        first = kept, *best(kept), jnp.zeros((), jnp.int32)
        return lax.while_loop(lambda s: s[2] & (s[3] < limit), exchange, first)[0]

    return lax.map(lambda pair: column(*pair), (problem.weight.T, mask.T)).T
