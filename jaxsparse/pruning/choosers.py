"""When masks change, and to what.

A chooser names the steps at which masks are chosen and turns scores into masks; `prune`
scores, and holds what was chosen. `Fixed` keeps the masks that were given, `Counted` as many
groups as a schedule asks for, `movement.ImportanceThreshold` what passes a threshold. Your own
is a subclass of `Chooser`, given to `prune` as its schedule.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxsparse.patterns.rules import LeafSpec
from jaxsparse.pruning import schedules
from jaxsparse.pruning.distributions import (
    Distribution,
    Scores,
    as_distribution,
    uniform,
)
from jaxsparse.pruning.schedules import Schedule
from jaxsparse.pruning.scores import Leaves
from jaxsparse.top_k import Candidates, top_k_masks

MOST_UNITS = 2**31 - 1

Specs = Mapping[str, LeafSpec]
Groups = dict[str, Bool[Array, "..."]]
"""Masks by slash path, one bit a group."""
Pooled = Mapping[str, Float[Array, "..."]]
"""Scores by slash path, one a group."""


class ChoiceContext(NamedTuple):
    """What a chooser may look at beside scores; the dictionaries are by slash path.

    Attributes:
      step: optimizer step, from 0.
      groups: the masks in force, bool, one a group; True is kept.
      specs: pattern and view of every leaf.
      grads: gradients with respect to the masked weights.
      weights: the weights as they are stored.
    """

    step: Int[Array, ""]
    groups: Groups
    specs: Specs
    grads: Leaves
    weights: Leaves


class Chooser:
    """When masks change, and to what; a subclass of your own is a schedule for `prune`.

    It says `updates_at` and `choose`; the rest has defaults. Like a schedule it is not
    callable, so that `optax.inject_hyperparams` leaves it alone.

    Attributes:
      raw: whether what is masked may come back as it was, so that the stored weights must
        not become zeros: `pruned` refuses such a chooser.

    >>> class Positive(Chooser):
    ...     def updates_at(self, step):
    ...         return step == 0
    ...
    ...     def choose(self, scores, state, context):
    ...         return {path: score > 0 for path, score in scores.items()}, state
    """

    raw: ClassVar[bool] = False

    def check(self, specs: Specs) -> None:
        """Raises ValueError on leaves that it cannot choose for: here where n:m fixes counts."""
        for path, spec in specs.items():
            if spec.pattern.fixed:
                raise ValueError(
                    f"{type(self).__name__} says how many are kept, but {spec.pattern} on {path!r} "
                    "fixes how many; a count schedule such as cubic(...) would work"
                )
            if spec.sparsity is not None:
                raise ValueError(
                    f"{type(self).__name__} says how many are kept, but the rule of {path!r} says "
                    f"sparsity={spec.sparsity}; a rule without sparsity would work"
                )

    def first_masks(self, weights: Leaves, specs: Specs) -> Groups:
        """The masks in force before the first choice: everything is kept."""
        # A constant would come out replicated, this is sharded as the weight is.
        pooled = {path: specs[path].pool(weight) for path, weight in weights.items()}
        return {path: jnp.isnan(values) | ~jnp.isnan(values) for path, values in pooled.items()}

    def init(self, weights: Leaves) -> Any:
        """What it remembers before the first choice, a pytree; `()` is nothing."""
        del weights
        return ()

    def updates_at(self, step: Int[Array, ""]) -> Bool[Array, ""] | bool:
        """Whether masks are chosen at this step; False itself: never."""
        raise NotImplementedError

    def ramp(self, step: Int[Array, ""]) -> Float[Array, ""]:
        """Strength of `movement`'s regularizer at this step, 0 to 1."""
        del step
        return jnp.zeros(())

    def choose(self, scores: Pooled, state: Any, context: ChoiceContext) -> tuple[Groups, Any]:
        """Returns the masks in force from the next step on, one bit a group, and the state.

        Args:
          scores: one a group, by slash path; at least float32, NaN where the score is.
          state: what `init` or the last choice returned.
          context: step, masks in force, gradients and weights.
        """
        raise NotImplementedError


class Fixed(Chooser):
    """The masks that were given, for ever."""

    def check(self, specs: Specs) -> None:
        pass

    def updates_at(self, step: Int[Array, ""]) -> bool:
        return False


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)  # the schedule may be traced
class Counted(Chooser):
    """Exactly as many groups as a schedule asks for, the best that score; nothing comes back.

    What a regrowth overrides; `prune` tells it the schedule and the sparsities.

    Attributes:
      dense: whether masked weights are handed their gradients.
      moves: whether groups move about at one sparsity, which takes a schedule and a free choice.
      schedule: when, and how much of the way.
      sparsity: overall target of the leaves whose rules name none.
      distribution: how leaves share what is kept.
      seed: of what is random.
    """

    dense: ClassVar[bool] = False
    moves: ClassVar[bool] = False
    schedule: Schedule = dataclasses.field(default=schedules.one_shot(), repr=False)
    sparsity: float | None = dataclasses.field(default=None, repr=False)
    distribution: Distribution = dataclasses.field(default=uniform(), repr=False)
    seed: int = dataclasses.field(default=0, repr=False)

    def check(self, specs: Specs) -> None:
        for path, spec in specs.items():
            if spec.sparsity is not None and schedules.is_given(self.schedule):
                raise ValueError(
                    f"the schedule is the sparsity itself, but the rule of {path!r} says "
                    f"{spec.sparsity}; a rule without sparsity would work"
                )
            if self.moves and spec.pattern.fixed:
                raise ValueError(
                    f"{self} moves groups about, but {spec.pattern} on {path!r} fixes how many of "
                    "every m are kept; straight_through() would work"
                )
        start = self.schedule.initial
        for path, target in self.targets(specs).items():
            if target < start and not (self.raw or self.moves):
                raise ValueError(
                    f"the schedule begins at initial={start}, above the {target} that {path!r} is "
                    "to reach, and without regrowth nothing comes back; initial=0 would work, so "
                    "would straight_through()"
                )

    def updates_at(self, step: Int[Array, ""]) -> Bool[Array, ""]:
        return self.schedule.updates_at(step)

    def ramp(self, step: Int[Array, ""]) -> Float[Array, ""]:
        return self.schedule.ramp(step)

    def choose(self, scores: Pooled, state: Any, context: ChoiceContext) -> tuple[Groups, Any]:
        best = self.best(scores, context.groups, context.step, context.specs)
        # A count above what is kept (given masks, a schedule that turns) buys nothing.
        return {path: mask & context.groups[path] for path, mask in best.items()}, state

    def targets(self, specs: Specs) -> dict[str, float]:
        """The final sparsity of every leaf; a ValueError where nothing names one."""
        if schedules.is_given(self.schedule):
            return dict.fromkeys(specs, 0.0)
        return self.distribution.targets(specs, self.sparsity)

    def kept(
        self, step: Int[Array, ""] | int, specs: Specs, units: Scores
    ) -> dict[str, Int[Array, "*batch"]]:
        """How many units every batch slice of every leaf keeps after this step's update."""
        targets, step = self.targets(specs), jnp.asarray(step)
        return self.distribution.kept(self.schedule, step, targets, specs, units)

    def best(
        self, scores: Pooled, allowed: Groups | None, step: Int[Array, ""] | int, specs: Specs
    ) -> Groups:
        """The best groups, exactly as many as are to be kept at this step.

        `allowed` are those that may be kept, None for all; what is not allowed ranks last.
        """
        free = dict.fromkeys(specs) if allowed is None else allowed
        units = {p: s.pattern.unit_scores(scores[p], free[p], s.view) for p, s in specs.items()}
        kept = self.kept(step, specs, units)
        best = top_k_masks([Candidates(units[p][0], kept[p], units[p][1]) for p in specs])
        return {
            path: spec.pattern.finish(mask, scores[path], free[path], spec.view)
            for (path, spec), mask in zip(specs.items(), best, strict=True)
        }


def as_regrowth(regrowth: Counted | None) -> Counted:
    """The regrowth, none by default; a TypeError on anything else."""
    if regrowth is None:
        return Counted()
    if not isinstance(regrowth, Counted):
        raise TypeError(
            f"prune: {regrowth!r} is no regrowth; None, regrow_gradient() or straight_through() "
            "would work"
        )
    return regrowth


def as_chooser(
    schedule: Any,
    regrowth: Counted,
    sparsity: float | None,
    distribution: Distribution | None,
    masks: Any,
    seed: int,
) -> Chooser:
    """What the arguments of `prune` say of when and what to choose.

    Raises:
      ValueError: on arguments that would prune nothing, or be ignored.
      TypeError: on arguments of the wrong kind.
    """
    if isinstance(sparsity, jax.Array):
        raise TypeError(
            "prune: sparsity must be static: inject_hyperparams(prune, static_args=('sparsity',)) "
            "would work, so would a float schedule, which may be traced"
        )
    distribution = as_distribution(distribution)
    if schedule is None and masks is None:
        raise ValueError(
            "prune: neither schedule nor masks, so nothing would ever be pruned; "
            "schedule=one_shot(), schedule=cubic(begin=0, end=1000) or "
            "masks=compute_masks(params, rules) would work"
        )
    counts = schedule is not None and not isinstance(schedule, Chooser)
    when = schedules.as_schedule(schedule) if counts else None
    if sparsity is not None and (when is None or schedules.is_given(when)):
        raise ValueError(
            f"prune: with schedule={schedule} no sparsity is asked for, but sparsity={sparsity} is "
            "given; schedule=cubic(begin=0, end=1000), or no sparsity, would work"
        )
    if not distribution.shares and (when is None or schedules.is_given(when)):
        raise ValueError(
            f"prune: the distribution says how sparse each leaf ends, and schedule={schedule} does "
            "not go by it; schedule=cubic(begin=0, end=1000), or no distribution, would work"
        )
    if when is not None:
        options = {"sparsity": sparsity, "distribution": distribution, "seed": seed}
        return dataclasses.replace(regrowth, schedule=when, **options)
    if regrowth.moves:
        raise ValueError(
            f"prune: {regrowth} moves groups when the schedule says so, and schedule={schedule} "
            "counts none; rules and schedule=constant(end=1000, every=100) would work"
        )
    return Fixed() if schedule is None else schedule


def check_countable(specs: Specs) -> None:
    """Raises ValueError on a leaf with more units than 32 bits count."""
    for path, spec in specs.items():
        if spec.units > MOST_UNITS:
            raise ValueError(
                f"leaf {path!r} of shape {spec.view.shape}: {spec.pattern} would choose among "
                f"{spec.units} groups in one slice, and counts go to {MOST_UNITS}; larger groups, "
                "such as Block(4, 16), would work, so would in its rule batch_axis=0, in_axis=(), "
                "out_axis=1, which chooses in every row of a matrix"
            )
