"""SparseGPT, an optimal brain surgeon: inputs go one by one, and later ones make up for them.

Frantar & Alistarh 2023, arXiv 2301.00774. With U the upper Cholesky factor of G⁻¹, pruning
w_j costs w_j² / U_jj², and the least change of the inputs behind it that makes up for it is
-(w_j / U_jj) U_j. Kept here: the number pruned is round(sparsity * size) in every block of
inputs, where the original prunes one more.
"""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from jaxsparse.calibration.layer_loss import Quadratic, matmul
from jaxsparse.calibration.targets import Target
from jaxsparse.patterns.nm import NM


def brain_surgeon(
    problem: Quadratic, target: Target, *, block: int = 128
) -> tuple[Bool[Array, "k n"], Float[Array, "k n"]]:
    """A mask, and weights that make up for what it takes.

    Args:
      problem: as `quadratic` makes it.
      target: of any pattern.
      block: inputs whose entries or blocks compete for what is kept, and after which the rest is
        updated. n:m is chosen anew every m inputs. Where groups are no runs of inputs (channels,
        transposable n:m) all inputs are one block, and what goes is chosen before any update.

    Returns:
      The mask and float32 weights (K, N), +0 where it is.
    """
    inputs, outputs = problem.weight.shape
    span = target.span or inputs
    size = span * max(1, block // span)
    # n:m sees what the inputs before a group did to it.
    grouped = isinstance(target.pattern, NM) and target.span is not None
    steps = span if grouped else size
    weight, gram = problem.weight, problem.gram
    if grouped and (short := -inputs % span):
        # Inputs that fill the last group up: nothing to them, and nothing that they change.
        weight = jnp.pad(weight, ((0, short), (0, 0)))
        gram = jnp.pad(gram, ((0, short), (0, short))).at[-short:, -short:].set(jnp.eye(short))
    factor, masks = inverse_factor(gram), []

    def prune(weight, start, size, steps, pruned):
        # One block of inputs: all weights with what makes up for it, and its mask.
        part = lax.dynamic_slice_in_dim(weight, start, size)
        corner = lax.dynamic_slice(factor, (start, start), (size, size))
        diagonal = jnp.diagonal(corner)[:, None]

        def step(part, first):
            here = lax.dynamic_slice_in_dim(part, first, steps)
            scores = (here / lax.dynamic_slice_in_dim(diagonal, first, steps)) ** 2
            kept = target.mask(scores, pruned)

            def row(i, state):
                part, errors = state
                w = lax.dynamic_index_in_dim(part, first + i, keepdims=False)
                error = jnp.where(kept[i], 0, w) / diagonal[first + i, 0]
                change = lax.dynamic_index_in_dim(corner, first + i, keepdims=False)
                return part - change[:, None] * error, errors.at[i].set(error)

            part, errors = lax.fori_loop(0, steps, row, (part, jnp.zeros_like(here)))
            return part, (kept, errors)

        part, (kept, errors) = lax.scan(step, part, jnp.arange(0, size, steps))
        kept, errors = kept.reshape(size, -1), errors.reshape(size, -1)
        # A row of the factor is zero before its diagonal: what is behind the block changes.
        rows = lax.dynamic_slice_in_dim(factor, start, size)
        behind = jnp.arange(len(weight))[:, None] >= start + size
        weight = jnp.where(behind, weight - matmul(rows.T, errors), weight)
        part = jnp.where(kept, part, 0)
        return lax.dynamic_update_slice_in_dim(weight, part, start, axis=0), kept

    # What goes in a block is counted from the first input on, so that the whole is exact.
    ends = [*range(size, len(weight), size), len(weight)]
    gone = None if grouped else [0, *(target.pruned(end, outputs) for end in ends)]
    counts = None if gone is None else jnp.diff(jnp.array(gone, jnp.int32))
    whole, rest = divmod(len(weight), size)
    if whole:
        blocks = jnp.arange(whole) * size, None if counts is None else counts[:whole]
        weight, kept = lax.scan(lambda w, at: prune(w, at[0], size, steps, at[1]), weight, blocks)
        masks.append(kept.reshape(whole * size, -1))
    if rest:
        last = None if counts is None else counts[-1]
        weight, kept = prune(weight, whole * size, rest, min(steps, rest), last)
        masks.append(kept)
    return jnp.concatenate(masks)[:inputs], weight[:inputs]


def inverse_factor(gram: Float[Array, "k k"]) -> Float[Array, "k k"]:
    """U, upper triangular, with UᵀU = G⁻¹; NaN where G is not positive definite."""
    # Read backwards, the lower factor of G is an upper R with R Rᵀ = G; U is its inverse.
    upper = jnp.linalg.cholesky(gram[::-1, ::-1])[::-1, ::-1]
    return lax.linalg.triangular_solve(
        upper, jnp.eye(len(gram), dtype=gram.dtype), left_side=True, lower=False
    )
