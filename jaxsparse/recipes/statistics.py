"""How far sparsification has come: what NNCF's `statistics()` says, and what is to be expected."""

import functools
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Int

from jaxsparse.patterns.base import GroupMask
from jaxsparse.patterns.rules import LeafSpec, Rule, is_real, resolve
from jaxsparse.pruning.choosers import ChoiceContext
from jaxsparse.pruning.movement import ImportanceThreshold, MovementState, penalty_weight
from jaxsparse.pruning.state import PruneState, prune_states
from jaxsparse.recipes.configuration import RecipeError
from jaxsparse.recipes.scopes import layer_of
from jaxsparse.text import columned
from jaxsparse.trees import Tree, near_misses

_LEGEND = """
sparsity: masked now; expected: masked at the end, did scores stay as they are
near: groups a step or two from the threshold; pull: slope of the regularizer at full strength"""
_OWN = "the state of a chain with this recipe.prune() would work"


class LeafStatistics(NamedTuple):
    """One leaf.

    Attributes:
      size: its entries.
      sparsity: share of them that is masked.
      expected: share that would be masked at the end of the warm-up, did scores stay as
        they are; from the end on what is masked.
      near: share of its groups whose score is near the threshold, so that a step or two
        decide.
      pull: slope of the regularizer at full strength for a score of 0. The scores' own
        slopes, sum of dL/dW' W over a group, are what it should be measured against.
    """

    size: int
    sparsity: Float[Array, ""]
    expected: Float[Array, ""]
    near: Float[Array, ""]
    pull: float


class MovementStatistics(NamedTuple):
    """What the masks of a step leave, by leaf; `str` is a table.

    Attributes:
      step: the step that comes next, from 0, which the masks are for.
      epoch: step / steps per epoch; NaN while these are unknown.
      threshold: tau(step), -inf before the warm-up.
      strength: lambda(step) as a share of the leaf's regularization factor.
      ended: whether the warm-up is over: masks stay, and nothing is regularized.
      leaves: by slash path.
    """

    step: Int[Array, ""]
    epoch: Float[Array, ""]
    threshold: Float[Array, ""]
    strength: Float[Array, ""]
    ended: Bool[Array, ""]
    leaves: dict[str, LeafStatistics]

    @property
    def sparsity(self) -> Float[Array, ""]:
        """Share masked of all leaves that get sparse (NNCF: relative sparsity)."""
        return self._overall("sparsity")

    @property
    def expected(self) -> Float[Array, ""]:
        """Share of them that would be masked at the end, did scores stay as they are."""
        return self._overall("expected")

    def _overall(self, name: str) -> Float[Array, ""]:
        size = sum(leaf.size for leaf in self.leaves.values())
        shares = (leaf.size / size * getattr(leaf, name) for leaf in self.leaves.values())
        return sum(shares, jnp.zeros(()))

    def __str__(self) -> str:
        rows: list[tuple[str, ...]] = [("leaf", "entries", "sparsity", "expected", "near", "pull")]
        for path, leaf in self.leaves.items():
            shares = (leaf.sparsity, leaf.expected, leaf.near)
            shown = (f"{float(share):z.2%}" for share in shares)
            rows.append((path, f"{leaf.size:,}", *shown, f"{float(leaf.pull):.2g}"))
        size = sum(leaf.size for leaf in self.leaves.values())
        overall = (f"{float(share):z.2%}" for share in (self.sparsity, self.expected))
        rows.append(("all", f"{size:,}", *overall, "", ""))
        threshold, strength = float(self.threshold), f"at {float(self.strength):.1%}"
        if self.ended:
            strength = "ended"
        elif threshold == -math.inf:
            strength = "not started"
        shown = "not found yet" if math.isnan(threshold) else f"{threshold:.4g}"
        head = (
            f"step {int(self.step)}, epoch {float(self.epoch):.2f}, threshold {shown}, "
            f"regularization {strength}"
        )
        return "\n".join([head, *columned(rows, {0}), _LEGEND])


def statistics_of(
    rules: Sequence[Rule],
    schedule: ImportanceThreshold,
    steps_per_epoch: int | None,
    factors: Mapping[str, float],
    opt_state: Tree,
    margin: float | Float[Array, ""],
) -> MovementStatistics:
    """See `MovementRecipe.statistics`."""
    if not is_real(margin) or not (isinstance(margin, Tracer) or float(margin) >= 0):
        raise RecipeError(f"margin is {margin!r}; a number from 0 on would work")
    states = [nnx.as_pure(state) for state in prune_states(opt_state)]
    states = [state for state in states if isinstance(state.score, MovementState)]
    states = [state for state in states if not factors.keys().isdisjoint(state.masks)] or states
    masks = {path: mask for state in states for path, mask in state.masks.items()}
    for path in factors:
        if path not in masks:
            raise RecipeError(
                f"no state of recipe.prune() in the optimizer's has a mask of {path!r}; "
                f"{near_misses(path, masks)}"
            )
    if len(states) != 1:
        raise RecipeError(f"{len(states)} states of the optimizer's have masks of it; {_OWN}")
    (state,) = states
    masks, scores = ({path: of[path] for path in factors} for of in (masks, state.score.scores))
    _check_groups(rules, masks)
    _check_threshold(schedule, state)
    step, initial = state.count, state.threshold
    threshold, shares = _shares(schedule, step, initial, masks, scores, margin)
    leaves, layers = {}, len({layer_of(path) for path in factors})
    for path, factor in factors.items():
        # A quarter is the slope of a sigmoid at 0.
        pull = factor * penalty_weight(_spec(path, masks[path]), layers) / 4
        masked, then, near = shares[path]
        size = math.prod(masks[path].view.shape)
        leaves[path] = LeafStatistics(size, masked, then, near, pull)
    epoch = step / (jnp.nan if steps_per_epoch is None else steps_per_epoch)
    return MovementStatistics(
        step, epoch, threshold, schedule.ramp(step), step >= schedule.end, leaves
    )


def _check_groups(rules: Sequence[Rule], masks: Mapping[str, GroupMask]) -> None:
    """Raises RecipeError where the state's groups are not those of the rules."""
    shapes = {
        path: jax.ShapeDtypeStruct(mask.view.shape, jnp.float32) for path, mask in masks.items()
    }
    try:
        specs = resolve(rules, shapes)
    except ValueError as error:
        raise RecipeError(f"the state's masks do not fit the recipe: {error}") from error
    for path, mask in masks.items():
        if (mask.pattern, mask.view) != (specs[path].pattern, specs[path].view):
            raise RecipeError(
                f"the state's mask of {path!r}, of shape {mask.view.shape}, is of {mask.pattern} "
                f"on {mask.view}, the recipe's of {specs[path].pattern} on {specs[path].view}; "
                f"{_OWN}"
            )


def _check_threshold(schedule: ImportanceThreshold, state: PruneState) -> None:
    """Raises RecipeError where the state cannot have come from the schedule.

    All that it holds of one is tau_0, and in `jit` not even its value can be asked for.
    """
    found = state.threshold
    if not is_real(found):
        raise RecipeError(f"the state is of a schedule without importance thresholds; {_OWN}")
    if isinstance(found, Tracer):
        return
    if schedule.initial is not None and found != jnp.asarray(schedule.initial, found.dtype):
        raise RecipeError(
            f"the state's initial importance threshold is {found}, the recipe's "
            f"{schedule.initial}; {_OWN}"
        )
    if schedule.initial is None and not jnp.isnan(found) and state.count < schedule.begin:
        raise RecipeError(
            f"the state has an initial importance threshold, {found}, at step {state.count}, the "
            f"recipe finds one at step {schedule.begin}; {_OWN}"
        )


@functools.partial(jax.jit, static_argnums=0)
def _shares(
    schedule: ImportanceThreshold,
    step: Int[Array, ""],
    initial: Float[Array, ""],
    masks: dict[str, GroupMask],
    scores: dict[str, Array],
    margin: float | Float[Array, ""],
) -> tuple[Array, dict[str, tuple[Array, Array, Array]]]:
    """tau(step), and by path the shares masked, expected to be and near to it."""
    threshold = schedule.threshold(step, initial)
    # The last choice; a tau_0 that is still to be found hardly matters that late.
    specs = {path: _spec(path, mask) for path, mask in masks.items()}
    last = ChoiceContext(jnp.asarray(schedule.end - 2), {}, specs, {}, {})
    late = jnp.where(jnp.isnan(initial), schedule.final, initial)
    groups, _ = schedule.choose(scores, late, last)
    shares = {}
    for path, mask in masks.items():
        masked = jnp.mean(~mask.expand(), dtype=jnp.float32)
        then = jnp.mean(~specs[path].expand(groups[path]), dtype=jnp.float32)
        near = jnp.mean(jnp.abs(scores[path] - threshold) <= margin, dtype=jnp.float32)
        shares[path] = masked, jnp.where(step >= schedule.end, masked, then), near
    return threshold, shares


def _spec(path: str, mask: GroupMask) -> LeafSpec:
    return LeafSpec(path, mask.pattern, mask.view, None)
