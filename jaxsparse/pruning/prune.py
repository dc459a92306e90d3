"""`prune`, the optax transform that scores, has masks chosen and holds them; once: `compute_masks`.

It stands at the head of a chain, where gradients are raw. Everything else about
pruning is a choice handed to it: the score, the schedule, the distribution, the
regrowth.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.core import Tracer
from jaxtyping import Array, Bool, Float

from jaxsparse.patterns.base import GroupMask, Unstructured
from jaxsparse.patterns.rules import LeafSpec, Rule, check_rules, resolve
from jaxsparse.pruning.choosers import (
    ChoiceContext,
    Chooser,
    Counted,
    Groups,
    as_chooser,
    as_regrowth,
    check_countable,
)
from jaxsparse.pruning.distributions import Distribution, as_distribution
from jaxsparse.pruning.masking import (
    NEED_PARAMS,
    check_finite,
    mask_tree,
    next_count,
    warn_unless_masked,
)
from jaxsparse.pruning.schedules import Schedule
from jaxsparse.pruning.scores import (
    Score,
    ScoreContext,
    as_score,
    gradients_of,
    leaves_of,
    pool_scores,
)
from jaxsparse.pruning.state import MAP_PARAMS, PruneState, pooled_mask
from jaxsparse.trees import Tree, leaves_by_path, near_misses


class RawPruner(optax.GradientTransformationExtraArgs):
    """What `prune` returns if the stored weights must stay dense."""


NEEDS_RAW = (
    "pruned(...) stores exact zeros, but this pruner needs the raw weights (straight_through, "
    "importance_threshold or a chooser that says raw): optax.chain(pruner, optimizer) with "
    "gradients of js.masked(loss, opt_state) in every step, and js.mask_params at the end, would "
    "work"
)

NEEDS_GRADIENTS = (
    "the score looks at gradients, and compute_masks was given none: "
    "compute_masks(params, rules, score=..., grads=jax.grad(loss)(params)) would work, so "
    "would a score of the weights alone, such as magnitude()"
)


def prune(
    rules: Sequence[Rule] | None = None,
    *,
    score: Score | None = None,
    schedule: Schedule | Chooser | float | Float[Array, ""] | None = None,
    sparsity: float | None = None,
    distribution: Distribution | None = None,
    regrowth: Counted | None = None,
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
        sparsity itself, of every leaf and at every step, and a `Chooser` says what to
        keep without counts. May be left out only where `masks` are given.
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

    >>> tx = prune([Rule(".*kernel", Unstructured())], schedule=0.5)
    >>> params = {"kernel": jnp.array([[1.0, -3.0], [2.0, 0.5]])}
    >>> _, state = tx.update(params, tx.init(params), params)
    >>> state.masks["kernel"].groups.tolist()
    [[False, True], [True, False]]
    """
    rules = _implied_rules(masks, schedule) if rules is None else check_rules(rules)
    score, regrowth = as_score(score), as_regrowth(regrowth)
    chooser = as_chooser(schedule, regrowth, sparsity, distribution, masks, seed)

    def plan(params) -> dict[str, LeafSpec]:
        specs = resolve(rules, params)
        check_countable(specs)
        chooser.check(specs)
        return specs

    def init(params) -> Any:
        if type(params).__name__ == "_ParamsPlaceholder":
            return MAP_PARAMS
        specs = plan(params)
        weights = {path: _array(w) for path, w in leaves_by_path(params).items() if path in specs}
        check_finite(weights)
        start = chooser.first_masks(weights, specs) if masks is None else _fit(masks, specs)
        held, learned = _hold(_checked(start, specs), specs), score.init(weights, specs)
        return PruneState(jnp.zeros((), jnp.int32), held, learned, chooser.init(weights))

    def update(updates, state, params=None, *, exact_zeros: bool = False, **extra) -> Any:
        if params is None:
            raise ValueError(NEED_PARAMS.format(name="prune"))
        if exact_zeros and chooser.raw:
            raise ValueError(NEEDS_RAW)
        specs, step, memory = plan(params), state.count, state.score
        # `apply_masks`, which is told the masks, stores what a forward pass sees masked.
        if not exact_zeros and "masks" not in extra and (chooser.raw or _is_traced(updates)):
            warn_unless_masked((path, spec.view.shape) for path, spec in specs.items())
        weights, grads = leaves_of(params, specs), gradients_of(updates, specs)
        context = ScoreContext(step, chooser.ramp(step), specs)
        found = None
        if jax.tree.leaves(memory):  # it learns at every step
            found, memory = score.update(grads, memory, weights, context)
        held = {path: state.masks[path].groups for path in specs}, state.threshold

        def choose():
            now = score.update(grads, memory, weights, context)[0] if found is None else found
            seen = ChoiceContext(step, held[0], specs, grads, weights)
            return _chosen(chooser.choose(pool_scores(now, specs, weights), held[1], seen), specs)

        due = chooser.updates_at(step)
        groups, threshold = held if due is False else lax.cond(due, choose, lambda: held)
        if not regrowth.dense:
            updates = mask_tree(updates, {p: mask.expand() for p, mask in state.masks.items()})
        return updates, PruneState(next_count(step), _hold(groups, specs), memory, threshold)

    return (RawPruner if chooser.raw else optax.GradientTransformationExtraArgs)(init, update)


def compute_masks(
    params: Tree,
    rules: Sequence[Rule],
    *,
    sparsity: float | None = None,
    score: Score | None = None,
    distribution: Distribution | None = None,
    grads: Tree | None = None,
) -> dict[str, Bool[Array, "..."]]:
    """Chooses masks once, outside training.

    Args:
      params: weights, any Flax or plain tree.
      rules: which leaves, with which pattern.
      sparsity: overall target of the leaves whose rules name none.
      score: default `magnitude()`.
      distribution: default `uniform()`.
      grads: gradients like `params`, for scores that look at them.

    Returns:
      `{"slash/path": mask}`, True is kept, in the shape of the weights.

    Raises:
      ValueError: on bad rules or sparsities, on a score that looks at gradients when
        none are given, and on gradients that do not fit, quoting path and shape.
      TypeError: on arguments of the wrong kind.

    >>> compute_masks({"w": jnp.array([1.0, -2.0])}, [Rule("w", Unstructured(), 0.5)])["w"].tolist()
    [False, True]
    """
    score, distribution = as_score(score), as_distribution(distribution)
    specs = resolve(check_rules(rules), params)
    check_countable(specs)
    weights = leaves_of(params, specs)
    slopes = NoGradients(NEEDS_GRADIENTS) if grads is None else gradients_of(grads, specs)
    context = ScoreContext(jnp.zeros((), jnp.int32), jnp.zeros(()), specs)
    found, _ = score.update(slopes, score.init(weights, specs), weights, context)
    once = Counted(sparsity=sparsity, distribution=distribution)
    groups = once.best(pool_scores(found, specs, weights), None, 0, specs)
    return {path: specs[path].expand(mask) for path, mask in groups.items()}


def _implied_rules(masks: Tree | None, schedule: Any) -> tuple[Rule, ...]:
    if masks is None:
        raise TypeError("prune needs rules, or the masks to keep to")
    if schedule is not None:
        raise ValueError(
            "prune: a schedule chooses masks anew, and without rules nothing says of which pattern "
            "and how sparse; rules beside the masks, or no schedule, would work"
        )
    return tuple(Rule(re.escape(path), Unstructured(), 0.0) for path in leaves_by_path(masks))


def _fit(masks: Tree, specs: Mapping[str, LeafSpec]) -> Groups:
    """Compresses full masks to one bit a group."""
    given = leaves_by_path(masks)
    groups = {}
    for path, spec in specs.items():
        if path not in given:
            raise ValueError(f"no mask given for leaf {path!r}; {near_misses(path, given)}")
        groups[path] = pooled_mask(path, given[path], spec)
    for path in given:
        if path not in specs:
            raise ValueError(f"mask for {path!r}, but no rule for it; {near_misses(path, specs)}")
    return groups


class NoGradients(dict):
    """Stands where gradients would, and says so as soon as a score looks at it."""

    def __init__(self, message: str):
        super().__init__()
        self._message = message

    def _refuse(self, *args: Any, **kwargs: Any) -> Any:
        raise ValueError(self._message)

    __getitem__ = __iter__ = __len__ = __contains__ = __or__ = __ror__ = __eq__ = _refuse
    get = items = keys = values = copy = pop = _refuse


def _chosen(answer: Any, specs: Mapping[str, LeafSpec]) -> tuple[Groups, Any]:
    """Masks and state as a chooser returned them."""
    if not (isinstance(answer, tuple) and len(answer) == 2 and isinstance(answer[0], dict)):
        raise ValueError(
            f"the chooser's choose returned {type(answer).__name__}; the masks by path and the "
            "state, a pair, would work"
        )
    return _checked(answer[0], specs), answer[1]


def _checked(groups: Groups, specs: Mapping[str, LeafSpec]) -> Groups:
    """What a chooser returned; a ValueError names the leaf for which it is no mask."""
    for path, spec in specs.items():
        if path not in groups:
            raise ValueError(f"the chooser returned nothing for leaf {path!r}")
        found = groups[path]
        if found.shape != spec.group_shape or found.dtype != bool:
            raise ValueError(
                f"the chooser returned {found.dtype}{list(found.shape)} for leaf {path!r}; one "
                f"bool a group, bool{list(spec.group_shape)}, would work"
            )
    return {path: groups[path] for path in specs}


def _hold(groups: Groups, specs: Mapping[str, LeafSpec]) -> dict[str, GroupMask]:
    return {p: GroupMask(groups[p], spec.pattern, spec.view) for p, spec in specs.items()}


def _array(weight: Any) -> Array:
    """A weight to pool; optimizers are initialised with bare shapes, too."""
    bare = isinstance(weight, jax.ShapeDtypeStruct)
    return jnp.zeros(weight.shape, weight.dtype) if bare else jnp.asarray(weight)


def _is_traced(tree: Tree) -> bool:
    return any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(tree))
