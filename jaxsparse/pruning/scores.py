"""How much each entry of a weight matters: (init, update) pairs.

`update` sees the gradients with respect to the *masked* weights, so entries that
are masked now have scores too, and the weights as they are stored. A pair with
no state is evaluated only at steps that choose masks; one with state at every
step.
"""

import zlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxsparse.patterns.base import real, widen
from jaxsparse.patterns.rules import LeafSpec, describe
from jaxsparse.pruning.masking import sharded_as
from jaxsparse.trees import Tree, leaves_by_path, near_misses

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


def leaves_of(params: Tree, specs: Mapping[str, LeafSpec]) -> Leaves:
    """The weights that rules name, as arrays."""
    return {path: jnp.asarray(w) for path, w in leaves_by_path(params).items() if path in specs}


def gradients_of(grads: Tree, specs: Mapping[str, LeafSpec]) -> Leaves:
    """The gradients of the weights that rules name.

    Raises:
      ValueError: if one is missing or has another shape than its weight.
    """
    given = leaves_by_path(grads)
    for path, spec in specs.items():
        if path not in given:
            raise ValueError(f"no gradient for leaf {path!r}; {near_misses(path, given)}")
        if jnp.shape(given[path]) != spec.view.shape:
            raise ValueError(
                f"the gradient of {path!r} has shape {jnp.shape(given[path])}, "
                f"the leaf {spec.view.shape}"
            )
        kind = describe(given[path])
        if isinstance(kind, str):  # float0, for integers
            raise ValueError(f"the gradient of {path!r} is {kind}; numbers would work")
    return {path: jnp.asarray(given[path]) for path in specs}


def pool_scores(
    found: Leaves, specs: Mapping[str, LeafSpec], weights: Leaves
) -> dict[str, Float[Array, "..."]]:
    """Pools scores of the weights' shapes; scores of the groups' shapes pass as they are.

    Raises:
      ValueError: on a missing leaf, complex scores or a third shape.
    """
    pooled = {}
    for path, spec in specs.items():
        if path not in found:
            raise ValueError(f"the score returned nothing for leaf {path!r}")
        shape = found[path].shape
        if jnp.iscomplexobj(found[path]):
            raise ValueError(
                f"the score of leaf {path!r} is {found[path].dtype}, which has no order; its "
                "modulus, jnp.abs(score), would work"
            )
        if shape == spec.view.shape:
            # Chance, for one, comes without the weight's sharding.
            pooled[path] = spec.pool(sharded_as(found[path], weights[path]))
        elif shape == spec.group_shape:
            pooled[path] = found[path]
        else:
            raise ValueError(
                f"the score of leaf {path!r} has shape {shape}; the weight's {spec.view.shape} "
                f"or one number a group, {spec.group_shape}, would work"
            )
    return pooled


def _stateless(of: Callable[[Array, Array], Array]) -> Score:
    def update(grads, state, weights, context):
        del context
        return {path: of(widen(grads[path]), widen(w)) for path, w in weights.items()}, state

    return Score(_no_state, update)


def _no_state(weights, specs):
    del weights, specs
    return ()
