"""`prune`: the optax transform that scores, chooses and holds masks.

It stands at the head of a chain, where gradients are raw. Everything else about
pruning is a choice handed to it: the score, the schedule, the distribution, the
regrowth.
"""

import contextlib
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import lax
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Int

from jaxsparse import schedules, scores
from jaxsparse.choosing import (
    Budget,
    Groups,
    check_countable,
    choose,
    drop_and_grow,
    gradients_of,
    hold,
    leaves_of,
    pool_scores,
)
from jaxsparse.distributions import Distribution, as_distribution, targets_of
from jaxsparse.masking import NEED_PARAMS, mask_tree, next_count, warn_unless_masked
from jaxsparse.movement import ImportanceThreshold
from jaxsparse.patterns import GroupMask, Unstructured, real
from jaxsparse.refusals import check_arguments, check_finite, check_pairs
from jaxsparse.regrowth import DropAndGrow, Regrowth, StraightThrough
from jaxsparse.rules import LeafSpec, Rule, check_rules, resolve
from jaxsparse.schedules import Schedule
from jaxsparse.scores import Score, ScoreContext
from jaxsparse.trees import Tree, leaves_by_path, near_misses, replace_by_path


class PruneState(NamedTuple):
    """State of `prune`.

    Attributes:
      count: optimizer steps done.
      masks: GroupMask by slash path, in force until the next update; leaves that
        no rule names do not appear.
      score: the score's own state, `()` for scores without.
      threshold: tau_0 of `importance_threshold`, `()` for every other schedule.
    """

    count: Int[Array, ""]
    masks: dict[str, GroupMask]
    score: Any
    threshold: Any


# optax.tree.map_params initialises with a placeholder: a leaf where our state has a
# tree says that nothing in it has the shape of the parameters.
MAP_PARAMS = PruneState(*[jax.ShapeDtypeStruct((), jnp.int32)] * 4)  # pyright: ignore


def prune(
    rules: Sequence[Rule] | None = None,
    *,
    score: Score | None = None,
    schedule: Schedule | ImportanceThreshold | float | Float[Array, ""] | None = None,
    sparsity: float | None = None,
    distribution: Distribution | None = None,
    regrowth: Regrowth = None,
    masks: Tree | None = None,
    seed: int = 0,
) -> optax.GradientTransformationExtraArgs:
    """Chooses masks as training goes and keeps gradients to what they leave.

    Update number t (from 0) sees dL/dW' with respect to the masked weights
    W' = `mask_params(params, masks(state))` and the stored weights. If the schedule
    says so it scores them and chooses masks, which are in force from step t + 1;
    then it passes on the gradients, zero where the masks of step t are. Without
    `schedule` the masks are static: the `masks` given.

    Gradients at the masked weights are what `masked(loss, opt_state)` returns when
    it is differentiated. Inside `pruned` the stored weights are masked already;
    in any other form `prune` warns, once, if nothing in this process has masked
    the weights for a forward pass.

    Args:
      rules: which leaves, with which pattern. None takes the paths of `masks`, one
        bit an entry.
      score: what each entry is worth; default `magnitude()`.
      schedule: when to update and how sparse to be; a float or an array is the
        sparsity itself, of every leaf and at every step. May be left out only where
        `masks` are given.
      sparsity: overall target of the leaves whose rules name none.
      distribution: how they share it; default `uniform()`.
      regrowth: None never brings back what is masked; else `regrow_random()`,
        `regrow_gradient()` or `straight_through()`.
      masks: initial masks, by path or as a tree like the parameters.
      seed: of the random initial masks and the random growth of sparse-to-sparse
        training.

    Returns:
      A transformation with a PruneState. Put it first in `optax.chain`, or give it
      to `pruned`.

    Raises:
      ValueError: without schedule and masks; at init, on rules that match nothing,
        overlap or do not fit, on sparsities out of reach and on weights that are
        not finite; at update, without parameters, and on gradients that do not fit.
      TypeError: on arguments of the wrong kind.

    >>> tx = prune([Rule(".*kernel", Unstructured(), 0.5)], schedule=schedules.one_shot())
    >>> params = {"kernel": jnp.array([[1.0, -3.0], [2.0, 0.5]])}
    >>> _, state = tx.update(params, tx.init(params), params)
    >>> state.masks["kernel"].groups.tolist()
    [[False, True], [True, False]]
    """
    ruled = rules is not None
    rules = check_rules(rules) if ruled else _implied_rules(masks)
    score, distribution = scores.as_score(score), as_distribution(distribution)
    when = _as_schedule(schedule)
    if isinstance(sparsity, jax.Array):
        raise TypeError(
            "prune: sparsity must be static: inject_hyperparams(prune, static_args=('sparsity',)) "
            "would work, so would a float schedule, which may be traced"
        )
    check_arguments(when, masks, regrowth, sparsity, ruled)
    free_choice = isinstance(regrowth, StraightThrough) or isinstance(when, ImportanceThreshold)
    dense_gradients = regrowth == StraightThrough("dense")

    def plan(params) -> tuple[dict[str, LeafSpec], Budget | None]:
        specs = resolve(rules, params)
        check_pairs(specs, when, regrowth)
        check_countable(specs)
        if not isinstance(when, Schedule):
            return specs, None
        if schedules.is_given(when):
            return specs, Budget(specs, when, dict.fromkeys(specs, 0.0), distribution)
        return specs, Budget(specs, when, targets_of(specs, sparsity, distribution), distribution)

    def init(params) -> Any:
        if type(params).__name__ == "_ParamsPlaceholder":
            return MAP_PARAMS
        specs, budget = plan(params)
        weights = {path: _array(w) for path, w in leaves_by_path(params).items() if path in specs}
        check_finite(weights)
        if masks is not None:
            groups = _given_groups(masks, specs)
        elif isinstance(regrowth, DropAndGrow) and budget is not None:
            chance = scores.random_scores(jax.random.key(seed), weights)
            chance = pool_scores(chance, specs, weights)
            groups = choose(chance, None, budget, budget.schedule.begin)
        else:
            groups = {path: _all_kept(specs[path].pool(w)) for path, w in weights.items()}
        threshold = ()
        if isinstance(when, ImportanceThreshold):
            dtype = jnp.result_type(*(jax.eval_shape(real, w) for w in weights.values()))
            threshold = jnp.asarray(jnp.nan if when.initial is None else when.initial, dtype)
        return PruneState(
            jnp.zeros((), jnp.int32), hold(groups, specs), score.init(weights, specs), threshold
        )

    def update(updates, state, params=None, *, exact_zeros: bool = False, **extra) -> Any:
        if params is None:
            raise ValueError(NEED_PARAMS.format(name="prune"))
        if exact_zeros and free_choice:
            raise ValueError(
                "pruned(...) stores exact zeros, but this pruner needs the raw weights "
                "(straight_through or importance_threshold): optax.chain(pruner, optimizer) with "
                "gradients of js.masked(loss, opt_state) in every step, and js.mask_params at the "
                "end, would work"
            )
        specs, budget = plan(params)
        # `apply_masks`, which is told the masks, stores what a forward pass sees masked.
        if not exact_zeros and "masks" not in extra and (free_choice or _is_traced(updates)):
            warn_unless_masked((path, spec.view.shape) for path, spec in specs.items())
        step, groups = state.count, {path: state.masks[path].groups for path in specs}
        weights, grads = leaves_of(params, specs), gradients_of(updates, specs)
        context = ScoreContext(step, _ramp(when, step), specs)
        memory, threshold, found = state.score, state.threshold, None
        if jax.tree.leaves(memory):  # it learns at every step
            found, memory = score.update(grads, memory, weights, context)

        def pooled():
            now = score.update(grads, memory, weights, context)[0] if found is None else found
            return pool_scores(now, specs, weights)

        def rechoose():
            if isinstance(when, ImportanceThreshold):
                return when.choose(step, threshold, pooled(), specs)
            if budget is None:
                return groups, threshold
            if isinstance(regrowth, DropAndGrow):
                growth = regrowth.growth(grads, jax.random.fold_in(jax.random.key(seed), step))
                growth = pool_scores(growth, specs, weights)
                new = drop_and_grow(regrowth, pooled(), growth, groups, budget, step)
            elif free_choice:
                new = choose(pooled(), None, budget, step)
            else:
                # A budget above what is kept (given masks, a schedule that turns) buys nothing.
                new = choose(pooled(), groups, budget, step)
                new = {path: mask & groups[path] for path, mask in new.items()}
            return new, threshold

        chosen = groups, threshold
        if when is not None:
            chosen = lax.cond(when.updates_at(step), rechoose, lambda: (groups, threshold))
        if not dense_gradients:
            updates = mask_tree(updates, {p: mask.expand() for p, mask in state.masks.items()})
        return updates, PruneState(next_count(step), hold(chosen[0], specs), memory, chosen[1])

    return optax.GradientTransformationExtraArgs(init, update)


def masks(opt_state: Tree, params: Tree | None = None) -> Tree:
    """Returns the masks in force, expanded to the shapes of the weights.

    Args:
      opt_state: any optax state with one or more PruneStates in it, however deep;
        an `nnx.Optimizer`, its `opt_state` and a `TrainState` too.
      params: give them to get a tree like them, None where dense.

    Returns:
      `{"slash/path": bool mask}`, True is kept, or the tree.

    Raises:
      ValueError: without a PruneState, and on a leaf in two of them.
    """
    found, states = {}, _prune_states(opt_state)
    if not states:
        raise ValueError(
            "no PruneState in the optimizer's state; a chain that begins with prune(...), or "
            "pruned(optimizer, prune(...)), has one"
        )
    for state in states:
        for path, mask in nnx.as_pure(state.masks).items():
            if path in found:
                raise ValueError(f"leaf {path!r} is pruned twice: it is in two PruneStates")
            found[path] = mask.expand()
    if params is None:
        return found
    everything = dict.fromkeys(leaves_by_path(params))
    return replace_by_path(params, everything | found)


def _implied_rules(masks: Tree | None) -> tuple[Rule, ...]:
    if masks is None:
        raise TypeError("prune needs rules, or the masks to keep to")
    return tuple(Rule(re.escape(path), Unstructured(), 0.0) for path in leaves_by_path(masks))


def _as_schedule(schedule: Any) -> Schedule | ImportanceThreshold | None:
    if schedule is None or isinstance(schedule, Schedule | ImportanceThreshold):
        return schedule
    if isinstance(schedule, int | float | jax.Array | np.ndarray | np.generic):
        return schedules.given(
            schedule if isinstance(schedule, int | float) else jnp.asarray(schedule)
        )
    raise TypeError(
        f"prune: {schedule!r} is no schedule; cubic(begin=0, end=1000), a float or an array "
        "would work"
    )


def _ramp(when: Schedule | ImportanceThreshold | None, step: Array) -> Float[Array, ""]:
    if isinstance(when, ImportanceThreshold):
        return when.ramp(step)
    return jnp.zeros(()) if when is None else when.ramp(step)


def _given_groups(masks: Tree, specs: Mapping[str, LeafSpec]) -> Groups:
    """Compresses full masks to one bit a group."""
    given = leaves_by_path(masks)
    groups = {}
    for path, spec in specs.items():
        if path not in given:
            raise ValueError(f"no mask given for leaf {path!r}; {near_misses(path, given)}")
        traced = isinstance(given[path], Tracer)
        # Masks that are there are checked in a `jax.jit` of `init`, too.
        with contextlib.nullcontext() if traced else jax.ensure_compile_time_eval():
            mask = jnp.asarray(given[path], bool)
            if mask.shape != spec.view.shape:
                raise ValueError(
                    f"the mask of {path!r} has shape {mask.shape}, the leaf {spec.view.shape}"
                )
            groups[path] = spec.pool(mask, "max") > 0
            splits = (spec.expand(groups[path]) != mask).any()
        if not traced and splits:
            raise ValueError(f"the mask of {path!r} splits groups of {spec.pattern}")
    for path in given:
        if path not in specs:
            raise ValueError(f"mask for {path!r}, but no rule for it; {near_misses(path, specs)}")
    return groups


def _array(weight: Any) -> Array:
    """A weight to pool; optimizers are initialised with bare shapes, too."""
    bare = isinstance(weight, jax.ShapeDtypeStruct)
    return jnp.zeros(weight.shape, weight.dtype) if bare else jnp.asarray(weight)


def _is_traced(tree: Tree) -> bool:
    return any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(tree))


def _all_kept(pooled: Float[Array, "..."]) -> Bool[Array, "..."]:
    """All True, and sharded as the weight is: a constant would come out replicated."""
    return jnp.isnan(pooled) | ~jnp.isnan(pooled)


def has_masks(tree: Tree) -> bool:
    """Whether `masks` finds something to read in a tree."""
    return bool(_prune_states(tree))


def _prune_states(tree: Tree) -> list[PruneState]:
    nodes = jax.tree.leaves(tree, is_leaf=lambda node: isinstance(node, PruneState))
    return [node for node in nodes if isinstance(node, PruneState)]
