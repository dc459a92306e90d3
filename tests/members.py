"""Every score, pattern and chooser, and one small training run that all of them share.

A new score, pattern, regrowth or chooser joins the battery by one line here.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

import jaxsparse as js
from jaxsparse.patterns.base import Pattern
from jaxsparse.patterns.nm import NM
from jaxsparse.trees import leaves_by_path, replace_by_path
from tests.own_storage import Diagonals


def user_score() -> js.Score:
    """A user's own pair: a running mean of squared gradients."""

    def init(weights, specs):
        del specs
        return {path: jnp.zeros(w.shape, jnp.float32) for path, w in weights.items()}

    def update(grads, state, weights, context):
        del context
        squares = {path: jnp.square(grads[path].astype(jnp.float32)) for path in weights}
        new = {path: 0.5 * state[path] + squares[path] for path in weights}
        return new, new

    return js.Score(init, update)


SCORES = {
    "magnitude": js.magnitude(),
    "random": js.random(),
    "gradient": js.gradient(),
    "saliency": js.saliency(),
    "saliency_momentum": js.saliency_momentum(),
    "movement": js.movement(optax.adam(1e-2), regularization=0.1),
    "user": user_score(),
}
PATTERNS: dict[str, Pattern] = {
    "unstructured": js.Unstructured(),
    "block": js.Block(4, 8),
    "block_padded": js.Block(5, 7, reduce="l2", pad=True),
    "channel": js.Channel(-1, reduce="max"),
    "nm": js.NM(2, 4),
    "nm_best": js.NM(2, 4, method="best"),
    "nm_greedy": js.NM(2, 4, method="greedy"),
    "user": Diagonals(),
}
END = 6
SPARSITY = 0.5


@dataclasses.dataclass(frozen=True)
class AboveMean(js.Chooser):
    """A user's own chooser: every other step keeps what scores at least the leaf's mean."""

    end: int

    def updates_at(self, step):
        return (step % 2 == 0) & (step <= self.end)

    def choose(self, scores, state, context):
        masks = {path: score >= jnp.nanmean(score) for path, score in scores.items()}
        return {path: mask & context.groups[path] for path, mask in masks.items()}, state


RIGL = {"schedule": js.constant(end=END, every=2), "regrowth": js.regrow_gradient(0.3)}
CHOOSERS = {  # what `prune` is told of when and what to choose
    "none": {"schedule": js.cubic(end=END, every=2)},
    "random": RIGL | {"regrowth": js.regrow_random(0.3)},
    "gradient": RIGL,
    "straight_through": {
        "schedule": js.cubic(end=END, every=2),
        "regrowth": js.straight_through(),
    },
    "user": {"schedule": AboveMean(END)},
}
REFUSED = [  # pairs that cannot work together; test_choosers holds their errors
    (pattern, chooser)
    for pattern in PATTERNS
    for chooser in ("random", "gradient", "user")
    if isinstance(PATTERNS[pattern], NM)
]
ALL = [
    (score, pattern, chooser)
    for score in SCORES
    for pattern in PATTERNS
    for chooser in CHOOSERS
    if (pattern, chooser) not in REFUSED and (chooser != "user" or score in ("magnitude", "user"))
]


def small_params() -> dict[str, Any]:
    """A Dense layer in float32 and a scan-stacked one (two layers in a leaf) in bfloat16."""
    keys = jax.random.split(jax.random.key(0), 2)
    return {
        "dense": {"bias": jnp.zeros(32), "kernel": jax.random.normal(keys[0], (16, 32))},
        "stack": {"kernel": jax.random.normal(keys[1], (2, 16, 16), jnp.bfloat16)},
    }


def rules_for(pattern: str, sparsity: float | None = SPARSITY) -> list[js.Rule]:
    return [
        js.Rule("dense/kernel", PATTERNS[pattern], sparsity),
        js.Rule("stack/kernel", PATTERNS[pattern], sparsity, batch_axis=0),
    ]


def pruner_for(score: str, pattern: str, chooser: str) -> optax.GradientTransformationExtraArgs:
    options = CHOOSERS[chooser]
    counted = not isinstance(options["schedule"], js.Chooser)  # others are asked for no sparsity
    rules = rules_for(pattern, SPARSITY if counted else None)
    return js.prune(rules, score=SCORES[score], **options)


def transform_for(score: str, pattern: str, chooser: str) -> optax.GradientTransformationExtraArgs:
    """The reference form, or the chain where raw weights must stay dense."""
    pruner, optimizer = pruner_for(score, pattern, chooser), optax.adam(1e-2)
    if chooser == "straight_through":
        return optax.chain(pruner, optimizer)
    return js.pruned(optimizer, pruner)


def slopes(params: Any) -> Any:
    """Gradients of a quadratic with a fixed minimum, dense and different everywhere."""
    leaves = {
        path: leaf - jnp.sin(1.7 * jnp.arange(leaf.size, dtype=leaf.dtype)).reshape(leaf.shape)
        for path, leaf in leaves_by_path(params).items()
    }
    return replace_by_path(params, leaves)


class CountedJit:
    """`jax.jit` that counts its traces: a second one is a second compilation.

    JAX's own count of compiled programs is a cache, which may be empty.
    """

    def __init__(self, function: Any):
        def counted(*args):
            self.traces += 1
            return function(*args)

        self.traces = 0
        self._jitted = jax.jit(counted)

    def __call__(self, *args: Any) -> Any:
        return self._jitted(*args)

    def lower(self, *args: Any) -> Any:
        """As of the jitted function; the trace is shared with the calls."""
        return self._jitted.lower(*args)


def step_of(tx: Any, **extra: Any):
    """One training step, to be jitted."""

    def step(params, state):
        grads = slopes(js.mask_params(params, js.masks(state)))
        updates, state = tx.update(grads, state, params, **extra)
        return optax.apply_updates(params, updates), state

    return step
