"""How much each entry of a weight matters: (init, update) pairs.

`update` sees the gradients with respect to the *masked* weights, so entries that
are masked now have scores too, and the weights as they are stored. A pair with
no state is evaluated only at steps that choose masks; one with state at every
step.
"""

import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxsparse.patterns import real, widen
from jaxsparse.rules import LeafSpec

Leaves = dict[str, Array]
"""Arrays by slash path."""


class ScoreContext(NamedTuple):
    """What a score may look at beside gradients and weights.

    Attributes:
      step: optimizer step, from 0.
      ramp: the schedule's strength at this step, 0 to 1 (`movement`'s regularizer).
      specs: pattern and view of every leaf, by path.
    """

    step: Int[Array, ""]
    ramp: Float[Array, ""]
    specs: dict[str, LeafSpec]


class Score(NamedTuple):
    """A criterion; write your own as a pair of functions.

    Attributes:
      init: (weights, specs) -> state, a pytree; `()` if there is none.
      update: (grads, state, weights, context) -> (scores, state). All but state
        are dicts by slash path over the leaves that rules name. A score has the
        shape of its weight, or `specs[path].group_shape` where it is one number a
        group already, and is real. Larger is kept. Look at `grads` only if you need
        them: `compute_masks` without `grads=` refuses a score that does.

    >>> oldest = Score(lambda weights, specs: (),
    ...                lambda grads, state, weights, context: (weights, state))
    """

    init: Callable[[Leaves, dict[str, LeafSpec]], Any]
    update: Callable[[Leaves, Any, Leaves, ScoreContext], tuple[Leaves, Any]]


def as_score(score: Score | None) -> Score:
    """The score, magnitude by default; a TypeError on what is no pair of functions."""
    if score is None:
        return magnitude()
    if not (callable(getattr(score, "init", None)) and callable(getattr(score, "update", None))):
        raise TypeError(f"{score!r} is no score; magnitude() or Score(init, update) would work")
    return score


def magnitude() -> Score:
    """|w|: Han et al. 2015, arXiv 1506.02626."""

    def update(grads, state, weights, context):
        del grads, context
        return {path: jnp.abs(widen(w)) for path, w in weights.items()}, state

    return Score(_no_state, update)


def gradient() -> Score:
    """|dL/dw|."""
    return _stateless(lambda g, w: jnp.abs(g))


def saliency() -> Score:
    """|w dL/dw|: SNIP, Lee et al. 2019, arXiv 1810.02340."""
    return _stateless(lambda g, w: jnp.abs(g * w))


def random(seed: int = 0) -> Score:
    """Uniform in [0, 1), a function of seed, step and leaf alone."""

    def update(grads, state, weights, context):
        del grads
        key = jax.random.fold_in(jax.random.key(seed), context.step)
        return random_scores(key, weights), state

    return Score(_no_state, update)


def saliency_momentum(decay: float = 0.9) -> Score:
    """s <- decay s + |w dL/dw|: Intel Neural Compressor's snip_momentum."""
    if not 0 <= decay < 1:
        raise ValueError(f"saliency_momentum: decay {decay} is not in [0, 1)")

    def init(weights, specs):
        del specs
        return {path: jnp.zeros_like(real(w)) for path, w in weights.items()}

    def update(grads, state, weights, context):
        del context
        new = {
            path: decay * state[path] + jnp.abs(widen(grads[path]) * widen(w))
            for path, w in weights.items()
        }
        return new, new

    return Score(init, update)


def random_scores(key: Array, weights: Leaves) -> Leaves:
    """Uniform float32 scores in the shape of the weights."""
    return {
        path: jax.random.uniform(jax.random.fold_in(key, zlib.crc32(path.encode())), w.shape)
        for path, w in weights.items()
    }


def _stateless(of: Callable[[Array, Array], Array]) -> Score:
    def update(grads, state, weights, context):
        del context
        return {path: of(widen(grads[path]), widen(w)) for path, w in weights.items()}, state

    return Score(_no_state, update)


def _no_state(weights, specs):
    del weights, specs
    return ()
