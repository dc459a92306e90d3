"""What is told of a walk while it goes on."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxsparse.calibration.layer_loss import matmul, power_of_two
from jaxsparse.calibration.reducers import statistics
from jaxsparse.patterns.views import View


class Pruned(NamedTuple):
    """What `prune_oneshot` tells its `on_pruned` after every weight, or kernel of a stack.

    Attributes:
      path: of the weight.
      index: which kernel of a stack, by its batch axes, None for all along an axis; () of a
        weight that is one kernel.
      number, total: how many are pruned, those of a run gone on from among them, and of how many.
      error: |X W - X V|² / |X W|² for kernels W and what is left of them V, by the reducer's
        state: exact where it has XᵀX (`gram`); without the products of different inputs where
        it has norms alone (`square_norms`); None where it has neither, 0 where X W is zero.
      seconds: since the one before, or the start.
    """

    path: str
    index: tuple[int | None, ...]
    number: int
    total: int
    error: float | None
    seconds: float


def relative_error(view: View, weight: Any, left: Any, state: Any) -> float | None:
    """`Pruned.error`.

    Args:
      view: of the weight.
      weight, left: before and after, of its shape.
      state: of the reducer, (kernels, ...).
    """
    named = statistics(state)
    if "products" in named:
        return float(_relative(weight, left, named["products"], view=view, square=True))
    if "squares" in named:
        return float(_relative(weight, left, named["squares"], view=view, square=False))
    return None


@functools.partial(jax.jit, static_argnames=("view", "square"))
def _relative(weight, left, met, *, view: View, square: bool):
    inputs = view.matrix_shape[0]
    met = met.reshape(-1, inputs, inputs if square else 1) / power_of_two(met)
    weight, left = weight.astype(jnp.float32), left.astype(jnp.float32)
    scale = power_of_two(weight)

    def size(leaf):
        kernels = view.matrix(leaf / scale).reshape(-1, *view.matrix_shape)
        return jnp.sum(kernels * (jax.vmap(matmul)(met, kernels) if square else met * kernels))

    whole = size(weight)
    lost = size(weight - left)
    return jnp.where(whole > 0, lost / jnp.where(whole > 0, whole, 1), 0)
