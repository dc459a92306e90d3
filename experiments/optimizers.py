"""Optimizers and learning rates by name."""

import itertools
from collections.abc import Sequence
from typing import Any

import optax

from experiments.registry import Registry
from experiments.steps import resolve

OPTIMIZERS: Registry[optax.GradientTransformation] = Registry("optimizer", given=1)


@OPTIMIZERS.register("adamw")
def adamw(
    learning_rate: Any, weight_decay: float = 0.0, clip: float = 0.0
) -> optax.GradientTransformation:
    """AdamW with optax's other defaults; with ``clip`` of gradients of at most that norm."""
    optimizer = optax.adamw(learning_rate, weight_decay=weight_decay)
    return optax.chain(optax.clip_by_global_norm(clip), optimizer) if clip else optimizer


@OPTIMIZERS.register("sgd")
def sgd(
    learning_rate: Any, momentum: float = 0.9, weight_decay: float = 0.0
) -> optax.GradientTransformation:
    """SGD with momentum and L2 decay coupled to the gradient."""
    return optax.chain(
        optax.add_decayed_weights(weight_decay), optax.sgd(learning_rate, momentum=momentum)
    )


def create(name: str, learning_rate: Any, **options: Any) -> optax.GradientTransformation:
    """The registered optimizer at a learning rate (a float or a schedule)."""
    return OPTIMIZERS.create(name, learning_rate, **options)


def learning_rate(
    steps: int,
    restarts: Sequence[int] = (),
    *,
    peak: float,
    warmup: float = 0,
    shape: str = "cosine",
    rewind: float = 1.0,
) -> optax.Schedule:
    """Warm-up and decay, over again from every restart.

    A segment of n steps that follows a restart peaks at ``rewind * peak``; the
    first at ``peak``. Within a segment: linear warm-up from 0 over ``warmup`` steps but
    ``n // 4`` at most, then a cosine to 0 at its end, or constant.

    Args:
      steps: length of the run.
      restarts: 0-based steps at which a new segment begins.
      peak: highest rate.
      warmup: steps of every segment's warm-up; below 1 a share of the run.
      shape: "cosine" or "constant".
      rewind: factor on the peak after a restart.

    Raises:
      ValueError: an unknown shape, or restarts that are not inside the run.
    """
    if shape not in ("cosine", "constant"):
        raise ValueError(f"learning_rate.shape is 'cosine' or 'constant', not {shape!r}")
    edges = [0, *restarts, steps]
    if any(begin >= end for begin, end in itertools.pairwise(edges)):
        raise ValueError(f"restarts {tuple(restarts)} must increase inside the {steps} steps")
    segments = []
    for index, (begin, end) in enumerate(itertools.pairwise(edges)):
        length, top = end - begin, peak * (rewind if index else 1.0)
        rise = min(resolve("learning_rate.warmup", warmup, steps), length // 4)
        decay = optax.constant_schedule(top)
        if shape == "cosine":
            decay = optax.cosine_decay_schedule(top, length - rise)
        parts = [optax.linear_schedule(0.0, top, rise), decay] if rise else [decay]
        segments.append(optax.join_schedules(parts, [rise] if rise else []))
    return optax.join_schedules(segments, list(restarts))
