"""The loss of a layer as one-shot methods see it: a quadratic of its inputs' Gram matrix.

    loss(V) = |X W - X V|² = tr((W - V)ᵀ G (W - V)),   G = Xᵀ X

for a kernel W (K, N), what is left of it V, and the inputs X (rows, K). Sources turn kernels
(out, in) and write the same with the transposes.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

DAMPING = 0.01  # of the mean of G's diagonal, in SparseGPT, ALPS and what follows them


class Quadratic(NamedTuple):
    """A kernel, and the damped Gram matrix of its inputs.

    Attributes:
      weight: (K, N) float32, zero where an input is dead.
      gram: G + damping * mean(diag G) I, (K, K) float32; of a dead input see `quadratic`.
    """

    weight: Float[Array, "k n"]
    gram: Float[Array, "k k"]

    def loss(self, other: Float[Array, "k n"]) -> Float[Array, ""]:
        """tr(Dᵀ G D) with the damped G, for D = weight - other."""
        change = self.weight - other
        return jnp.sum(change * matmul(self.gram, change))


def quadratic(
    weight: Float[Array, "k n"], gram: Float[Array, "k k"], damping: float = DAMPING
) -> Quadratic:
    """What methods that solve with G start from.

    An input that was never anything but zero (G_jj = 0) is dead: its weights become zero,
    its G_jj one, before the mean of the damping is taken; the mean of the others where that is
    less, so that damping never drowns them.
    """
    gram = gram.astype(jnp.float32)
    diagonal = jnp.diagonal(gram)
    dead = diagonal == 0
    others = jnp.sum(diagonal) / jnp.maximum(jnp.sum(~dead), 1)
    instead = jnp.where(others > 0, jnp.minimum(others, 1.0), 1.0)
    diagonal = jnp.where(dead, instead, diagonal)
    gram = gram + jnp.diag(jnp.where(dead, instead, 0))
    damped = gram + damping * jnp.mean(diagonal) * jnp.eye(len(gram), dtype=gram.dtype)
    return Quadratic(jnp.where(dead[:, None], 0, weight.astype(jnp.float32)), damped)


def power_of_two(array: Float[Array, "..."]) -> Float[Array, ""]:
    """The largest power of two below the largest of some numbers, by which division is exact.

    Squares of what is left fit float32, as those of 1e30 and of 1e-30 do not. Of zeros it is 1,
    and it stays within 2⁻¹⁰⁰ and 2¹⁰⁰, whose inverses are normal numbers.

    >>> power_of_two(jnp.array([3.0, -9.0])).item()
    8.0
    """
    largest = jnp.max(jnp.abs(array), initial=0).astype(jnp.float32)
    exponent = jnp.clip(jnp.frexp(largest)[1] - 1, -100, 100)
    return jnp.where(largest > 0, jnp.ldexp(jnp.float32(1), exponent), 1)


def balanced(problem: Quadratic) -> tuple[Quadratic, Float[Array, ""]]:
    """The same problem in numbers near 1, and by how much its weights are to be multiplied."""
    size = power_of_two(problem.weight)
    return Quadratic(problem.weight / size, problem.gram / power_of_two(problem.gram)), size


def matmul(a: Float[Array, "m k"], b: Float[Array, "k n"]) -> Float[Array, "m n"]:
    """a @ b in all of float32, also where a device has faster products."""
    return jnp.matmul(a, b, precision=lax.Precision.HIGHEST)


def reconstruct(
    problem: Quadratic, mask: Bool[Array, "k n"], *, steps: int = 10, start: Array | None = None
) -> Float[Array, "k n"]:
    """The weights under a mask that minimize the loss: least squares for every output.

        V_S = (G_SS)⁻¹ (G W)_S   on the support S of each column

    by conjugate gradients for all columns at once, preconditioned with diag G, so that
    nothing is factorized per column. A step is one product (K, K) by (K, N). From Wanda's
    mask 5 steps came within 2.2 % of the exact loss, 10 within 0.13 %, 15 to all digits.

    Args:
      problem: as `quadratic` makes it.
      mask: True is kept.
      steps: of conjugate gradients.
      start: where they start, by default the weights that are kept.

    Returns:
      (K, N) float32, +0 where the mask is.
    """
    scale = jnp.sqrt(jnp.diagonal(problem.gram))
    gram = problem.gram / scale[:, None] / scale
    wanted = matmul(gram, problem.weight * scale[:, None])
    begin = (problem.weight if start is None else start) * scale[:, None]
    found = jnp.where(mask, begin, 0)

    def inner(a, b):
        return jnp.sum(a * b, axis=0)

    def ratio(a, b):  # a column that is solved moves no more
        return jnp.where(b > 0, a / jnp.where(b > 0, b, 1), 0)

    def step(_, state):
        found, residual, direction, size = state
        image = jnp.where(mask, matmul(gram, direction), 0)
        length = ratio(size, inner(direction, image))
        found, residual = found + length * direction, residual - length * image
        new = inner(residual, residual)
        return found, residual, residual + ratio(new, size) * direction, new

    residual = jnp.where(mask, wanted - matmul(gram, found), 0)
    state = found, residual, residual, inner(residual, residual)
    found = lax.fori_loop(0, steps, step, state)[0]
    return jnp.where(mask, found / scale[:, None], 0)
