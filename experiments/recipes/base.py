"""Recipes: how a run gets sparse, as one optax transform.

A recipe is made from a :class:`Setup`, what every recipe is told, and its options
in the config. Most train dense up to the step ``begin``, prune up to ``end`` and
fine-tune to the end of the run, all within one optax state. A step is given as a share of
the run (below 1) or counted (from 1 on): see ``experiments.steps``.
"""

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import optax

import jaxsparse as js
from experiments import steps
from experiments.registry import Registry, near_misses
from jaxsparse.pruning.distributions import Distribution
from jaxsparse.pruning.schedules import Schedule

Masks = Mapping[str, jax.Array]
MakeOptimizer = Callable[[Sequence[int]], tuple[optax.GradientTransformation, optax.Schedule]]


@dataclasses.dataclass(frozen=True)
class Setup:
    """What every recipe is told.

    Attributes:
      rules: which leaves get which pattern.
      sparsity: target over the pruned leaves, shared out by ``distribution``.
      distribution: see above.
      steps: length of the run.
      seed: for whatever the recipe draws at random.
      optimizer: restarts -> (optimizer, its learning rate); a restart is a step at
        which the learning-rate schedule begins anew.
      structure: () -> the heads and neurons of the model.
    """

    rules: Sequence[js.Rule]
    sparsity: float
    distribution: Distribution
    steps: int
    seed: int
    optimizer: MakeOptimizer
    structure: Callable[[], js.graph.Structure]

    def at(self, **options: float) -> list[int]:
        """The steps that options such as ``begin=0.25`` stand for.

        Raises:
          ValueError: one outside the run, or before the one that it follows.
        """
        found = {
            name: steps.inside(f"recipe.{name}", value, self.steps)
            for name, value in options.items()
        }
        for one, two in itertools.pairwise(found):
            if found[one] > found[two]:
                first, last = (steps.spelled(options[name], self.steps) for name in (one, two))
                raise ValueError(
                    f"recipe.{one} = {first} lies after recipe.{two} = {last}; make {one} smaller "
                    f"or {two} larger"
                )
        return list(found.values())

    def interval(self, every: float) -> int:
        """The steps between two mask updates that the option ``every`` stands for."""
        return steps.interval("recipe.every", every, self.steps)

    def prune(self, schedule: Schedule, **options: Any):
        """``js.prune`` with this setup's rules and targets."""
        return js.prune(
            self.rules,
            schedule=schedule,
            sparsity=self.sparsity,
            distribution=self.distribution,
            seed=self.seed,
            **options,
        )


class Recipe(NamedTuple):
    """How to step, and what the model is at any time.

    Attributes:
      tx: the transform; it is given gradients with respect to the masked weights.
      learning_rate: step -> rate, for the log.
      masks: optimizer state -> masks by path; none where the model is dense. What
        the model computes with is always ``mask_params(params, masks)``.
      dense_until: steps before the first mask; there the dense model is measured.
        0 where no such phase exists.
      wants_masks: whether ``tx.update`` must be given the masks in force.
      has_target: whether the sparsity was asked for, or is what came out.
      permutation: options of the search with which channels are permuted after
        ``dense_until`` steps; None permutes nothing.
      structure: how masks are made to agree about heads and neurons after
        ``structure_at`` steps, see ``experiments.structure``; None leaves them.
      structure_at: from there on masks stay.
    """

    tx: optax.GradientTransformationExtraArgs
    learning_rate: Callable[[int], Any]
    masks: Callable[[Any], Masks] = js.masks
    dense_until: int = 0
    wants_masks: bool = False
    has_target: bool = True
    permutation: Mapping[str, Any] | None = None
    structure: Mapping[str, Any] | None = None
    structure_at: int = 0


RECIPES: Registry[Recipe] = Registry("recipe", given=1)

_RAMPS = {
    "cubic": js.cubic,
    "linear": js.linear,
    "cosine": js.cosine,
    "exponential": js.exponential,
}


def create(name: str, setup: Setup, **options: Any) -> Recipe:
    """The registered recipe.

    Raises:
      ValueError: unknown name or option (with near misses), or steps out of order.
    """
    return RECIPES.create(name, setup, **options)


def ramp_named(name: str) -> Callable[..., Schedule]:
    """The schedule between the first masks and the last.

    Raises:
      ValueError: an unknown name, with near misses.
    """
    if name not in _RAMPS:
        raise ValueError(f"unknown recipe.ramp {name!r}{near_misses(name, _RAMPS)}")
    return _RAMPS[name]
