"""How sparse to be at a step.

A schedule updates masks at begin, begin + every, ... and at end, counted in
optimizer steps from 0. With T = floor((end - begin) / every), the k-th update
asks for curve(k / T), which runs from `initial` to a leaf's own target; from
`end` on masks are frozen.

Schedules are not callable, so that `optax.inject_hyperparams` leaves them alone.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxsparse.patterns.base import check_sparsity
from jaxsparse.uint64 import UInt64, rounded_share

Curve = Callable[[Any, float, float], Any]  # (progress, initial, target) -> sparsity


@dataclasses.dataclass(frozen=True)
class Schedule:
    """Sparsity against optimizer steps; made by the functions below.

    Attributes:
      curve: (progress in [0, 1], initial, target) -> sparsity.
      initial: sparsity at progress 0.
      begin: first step at which masks are chosen.
      end: last such step; None goes on for ever.
      every: steps between two updates.
    """

    curve: Curve
    initial: float = 0.0
    begin: int = 0
    end: int | None = None
    every: int = 1

    def __post_init__(self):
        check_sparsity("schedule: initial", self.initial)
        if self.begin < 0 or self.every < 1:
            raise ValueError(f"schedule: begin={self.begin} < 0 or every={self.every} < 1")
        if self.end is not None and self.begin > self.end:
            raise ValueError(
                f"schedule: begin={self.begin} lies after end={self.end}; "
                f"end={self.begin} would prune in one shot"
            )

    def updates_at(self, step: Int[Array, ""] | int) -> Bool[Array, ""]:
        """Whether masks are chosen at this step."""
        step = jnp.asarray(step)
        due = (step >= self.begin) & ((step - self.begin) % self.every == 0)
        return due if self.end is None else (due & (step <= self.end)) | (step == self.end)

    def progress(self, step: Int[Array, ""] | int) -> Float[Array, ""]:
        """k / T in [0, 1]; exactly 1 from the last update on, and without an end."""
        updates = 0 if self.end is None else (self.end - self.begin) // self.every
        if not updates:
            return jnp.where(jnp.asarray(step) >= self.begin, 1.0, 0.0)
        done = jnp.clip((jnp.asarray(step) - self.begin) // self.every, 0, updates)
        return done.astype(jnp.float32) / updates

    def sparsity(self, step: Int[Array, ""] | int, target: float) -> Float[Array, ""]:
        """Sparsity asked for by the last update at or before `step` (0 before the first)."""
        asked = self.curve(self.progress(step), self.initial, target)
        return jnp.where(jnp.asarray(step) < self.begin, 0.0, asked)

    def ramp(self, step: Int[Array, ""] | int) -> Float[Array, ""]:
        """How far the curve has come, 0 to 1, and 0 outside [begin, end).

        The strength of `movement`'s regularizer.
        """
        step = jnp.asarray(step)
        inside = (step >= self.begin) & (True if self.end is None else step < self.end)
        return jnp.where(inside, self.curve(self.progress(step), 0.0, 1.0 - 2.0**-24), 0.0)

    def share(
        self, step: Int[Array, ""] | int, target: float, size: int, limit: float = 1.0
    ) -> UInt64:
        """How many of `size` units to prune at this step: round(sparsity / limit * size).

        The final count is computed from the Python number, so that 0.9 of 20 million
        is 18 million and not what float32 makes of it.
        """
        now = jnp.clip(self.curve(self.progress(step), self.initial, target) / limit, 0.0, 1.0)
        share = rounded_share(now, size)
        if is_given(self):
            return share
        final = UInt64.of(round(target / limit * size))
        done = self.progress(step) >= 1
        return UInt64(*(jnp.where(done, f, s) for f, s in zip(final, share, strict=True)))


def constant(*, begin: int = 0, end: int | None = None, every: int = 1) -> Schedule:
    """The target from `begin` on; what sparse-to-sparse training (SET, RigL) uses."""
    return Schedule(_constant, 0.0, begin, end, every)


def one_shot(begin: int = 0) -> Schedule:
    """Prunes to the target at step `begin`, once."""
    return Schedule(_constant, 0.0, begin, begin)


def cubic(initial: float = 0.0, *, begin: int = 0, end: int, every: int = 1) -> Schedule:
    """s0 + (s - s0) (1 - (1 - p)^3): Zhu and Gupta 2017, arXiv 1710.01878.

    >>> round(float(cubic(begin=0, end=10).sparsity(5, 0.8)), 4)
    0.7
    """
    return Schedule(_cubic, initial, begin, end, every)


def linear(initial: float = 0.0, *, begin: int = 0, end: int, every: int = 1) -> Schedule:
    """s0 + (s - s0) p."""
    return Schedule(_linear, initial, begin, end, every)


def cosine(initial: float = 0.0, *, begin: int = 0, end: int, every: int = 1) -> Schedule:
    """s0 + (s - s0) (1 - cos(pi p / 2)), slow at first: Intel Neural Compressor's "cos"."""
    return Schedule(_cosine, initial, begin, end, every)


def exponential(initial: float = 0.0, *, begin: int = 0, end: int, every: int = 1) -> Schedule:
    """1 - (1 - s0) ((1 - s) / (1 - s0))^p: every update keeps the same share of what is left."""
    return Schedule(_exponential, initial, begin, end, every)


def iterative(levels: int, initial: float = 0.0, *, begin: int = 0, every: int) -> Schedule:
    """`levels` rounds of pruning, `every` steps of fine-tuning after each.

    Round i = 0 .. levels - 1 leaves the density (1 - s0) ((1 - s) / (1 - s0))^((i + 1) / levels)
    (Han et al. 2015, arXiv 1506.02626). Combine it with a learning rate that
    starts anew each round.

    >>> [round(float(iterative(2, every=5).sparsity(t, 0.75)), 4) for t in (0, 4, 5)]
    [0.5, 0.5, 0.75]
    """
    if levels < 1:
        raise ValueError(f"iterative: levels={levels} must be at least 1")
    return Schedule(_Rounds(levels), initial, begin, begin + (levels - 1) * every, every)


def given(value: float | Float[Array, ""]) -> Schedule:
    """The sparsity itself, for every leaf and from step 0 on; what a float stands for.

    A traced value is taken as it is: that is how `optax.inject_hyperparams` and
    ratio search steer pruning. It replaces the targets, so the rules have none.
    """
    if isinstance(value, int | float):
        check_sparsity("schedule", value)
    return Schedule(_Given(value))


def is_given(schedule: Any) -> bool:
    """Whether a schedule is the sparsity itself, made by `given`."""
    return isinstance(schedule, Schedule) and isinstance(schedule.curve, _Given)


def as_schedule(schedule: Any) -> Schedule:
    """The schedule, `given` of a number; a TypeError on anything else."""
    if isinstance(schedule, Schedule):
        return schedule
    if isinstance(schedule, int | float | jax.Array | np.ndarray | np.generic):
        return given(schedule if isinstance(schedule, int | float) else jnp.asarray(schedule))
    raise TypeError(
        f"prune: {schedule!r} is no schedule; cubic(begin=0, end=1000), a float or an array "
        "would work"
    )


def _constant(progress, initial, target):
    del progress, initial
    return target


def _linear(progress, initial, target):
    return initial + (target - initial) * progress


def _cubic(progress, initial, target):
    return initial + (target - initial) * (1 - (1 - progress) ** 3)


def _cosine(progress, initial, target):
    return initial + (target - initial) * (1 - jnp.cos(jnp.pi * progress / 2))


def _exponential(progress, initial, target):
    return 1 - (1 - initial) * ((1 - target) / (1 - initial)) ** progress


@dataclasses.dataclass(frozen=True)
class _Rounds:
    levels: int

    def __call__(self, progress, initial, target):
        done = (progress * (self.levels - 1) + 1) / self.levels
        return _exponential(done, initial, target)


@dataclasses.dataclass(frozen=True, eq=False)  # the value may be a tracer
class _Given:
    value: Any

    def __call__(self, progress, initial, target):
        del progress, initial, target
        return self.value
