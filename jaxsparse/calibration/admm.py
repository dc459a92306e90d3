"""ALPS: the mask of one layer by ADMM, the weights under it by conjugate gradients.

Meng et al. 2024, arXiv 2406.07831. With every input scaled to G_jj = 1, C the scaled G:

    B = (C + ρI)⁻¹ (C B₀ - V + ρP),   P = keep(B + V/ρ),   V = V + ρ(B - P)

ρ grows while the support of P still changes, and the eigenvectors of C, found once, serve every
ρ. On the shared cases the loss is the least of all methods here.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jaxsparse.calibration.layer_loss import Quadratic, matmul, reconstruct
from jaxsparse.calibration.targets import Target

CHECK = 3  # iterations between looks at the support
LARGEST = 1e6  # ρ


class _State(NamedTuple):
    """Of the iteration: `changed` entries of the support since the last look at it."""

    count: Int[Array, ""]
    free: Float[Array, "k n"]
    kept: Float[Array, "k n"]
    dual: Float[Array, "k n"]
    rho: Float[Array, ""]
    raised: Bool[Array, ""]
    support: Bool[Array, "k n"]
    done: Bool[Array, ""]


def admm(
    problem: Quadratic, target: Target, *, iterations: int = 300, rho: float = 0.1, steps: int = 10
) -> tuple[Bool[Array, "k n"], Float[Array, "k n"]]:
    """A mask, and weights that minimize the damped loss under it.

    Args:
      problem: as `quadratic` makes it.
      target: of any pattern.
      iterations: of ADMM, at most.
      rho: its first penalty.
      steps: of `reconstruct` at the end.

    Returns:
      The mask and float32 weights (K, N), +0 where it is.
    """
    scale = jnp.sqrt(jnp.diagonal(problem.gram))
    gram = problem.gram / scale[:, None] / scale
    values, vectors = jnp.linalg.eigh(gram)
    dense = problem.weight * scale[:, None]
    wanted = matmul(gram, dense)

    def keep(x):
        mask = target.mask(x * x, reduce="sum")  # the nearest: groups go by their norm
        return jnp.where(mask, x, 0), mask

    begin, support = keep(dense)
    size = jnp.maximum(jnp.sum(support), 1)

    def iterate(state: _State) -> _State:
        rho = state.rho
        right = matmul(vectors.T, wanted - state.dual + rho * state.kept)
        free = matmul(vectors, right / (values + rho)[:, None])
        kept, support = keep(free + state.dual / rho)
        dual = state.dual + rho * (free - kept)
        new = state._replace(count=state.count + 1, free=free, kept=kept, dual=dual)
        return lax.cond(new.count % CHECK == 0, look, lambda new, _: new, new, support)

    def look(state: _State, support) -> _State:
        changed = jnp.sum(support != state.support)
        much, more = changed > 0.1 * size, changed > 0.005 * size
        still, raised = changed < 1, state.raised | much | more
        factor = jnp.where(much, 1.3, jnp.where(more, 1.2, jnp.where(raised, 1.1, 0.2)))
        settled = (state.count >= 30) & (changed < 0.0003 * size)
        # A support that hardly moves at first says that ρ began too large.
        again = ~raised
        return state._replace(
            kept=jnp.where(again, begin, state.kept),
            dual=jnp.where(again, 0, state.dual),
            rho=jnp.minimum(state.rho * factor, LARGEST),
            raised=raised,
            support=support,
            done=(still & state.raised) | settled,
        )

    state = _State(
        jnp.zeros((), jnp.int32),
        dense,
        begin,
        jnp.zeros_like(dense),
        jnp.asarray(rho, dense.dtype),
        jnp.zeros((), bool),
        support,
        jnp.zeros((), bool),
    )
    state = lax.while_loop(lambda s: ~s.done & (s.count < iterations), iterate, state)
    mask = keep(state.free)[1]
    found = reconstruct(problem, mask, steps=steps, start=state.free / scale[:, None])
    return mask, found
