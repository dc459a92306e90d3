"""Every score, pattern and regrowth, and one small training run that all of them share.

A new score, pattern or regrowth joins the battery by one line here.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

import jaxsparse as js
from jaxsparse.nm import NM
from jaxsparse.patterns import Pattern
from jaxsparse.regrowth import DropAndGrow
from jaxsparse.trees import leaves_by_path, replace_by_path


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
}
REGROWTHS = {
    "none": None,
    "random": js.regrow_random(0.3),
    "gradient": js.regrow_gradient(0.3),
    "straight_through": js.straight_through(),
}
REFUSED = [  # pairs that cannot work together; test_pruning holds their errors
    (pattern, regrowth)
    for pattern in PATTERNS
    for regrowth in REGROWTHS
    if isinstance(PATTERNS[pattern], NM) and isinstance(REGROWTHS[regrowth], DropAndGrow)
]
ALL = [
    (score, pattern, regrowth)
    for score in SCORES
    for pattern in PATTERNS
    for regrowth in REGROWTHS
    if (pattern, regrowth) not in REFUSED
]

END = 6
SPARSITY = 0.5


def small_params() -> dict[str, Any]:
    """A Dense layer in float32 and a scan-stacked one (two layers in a leaf) in bfloat16."""
    keys = jax.random.split(jax.random.key(0), 2)
    return {
        "dense": {"bias": jnp.zeros(32), "kernel": jax.random.normal(keys[0], (16, 32))},
        "stack": {"kernel": jax.random.normal(keys[1], (2, 16, 16), jnp.bfloat16)},
    }


def rules_for(pattern: str) -> list[js.Rule]:
    return [
        js.Rule("dense/kernel", PATTERNS[pattern], SPARSITY),
        js.Rule("stack/kernel", PATTERNS[pattern], SPARSITY, batch_axis=0),
    ]


def pruner_for(score: str, pattern: str, regrowth: str) -> optax.GradientTransformationExtraArgs:
    dynamic = regrowth in ("random", "gradient")
    schedule = js.constant(end=END, every=2) if dynamic else js.cubic(end=END, every=2)
    return js.prune(
        rules_for(pattern), score=SCORES[score], schedule=schedule, regrowth=REGROWTHS[regrowth]
    )


def transform_for(score: str, pattern: str, regrowth: str) -> optax.GradientTransformationExtraArgs:
    """The reference form, or the chain where raw weights must stay dense."""
    pruner, optimizer = pruner_for(score, pattern, regrowth), optax.adam(1e-2)
    if regrowth == "straight_through":
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
