"""From scores to masks: how a budget of groups is spent."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxsparse import schedules, scores
from jaxsparse.distributions import Distribution, as_distribution, targets_of
from jaxsparse.masking import sharded_as
from jaxsparse.patterns import GroupMask
from jaxsparse.regrowth import DropAndGrow
from jaxsparse.rules import LeafSpec, Rule, check_rules, describe, resolve
from jaxsparse.schedules import Schedule
from jaxsparse.scores import Leaves, Score, ScoreContext
from jaxsparse.selection import Candidates, count, top_k_masks
from jaxsparse.trees import Tree, leaves_by_path, near_misses

Groups = dict[str, Bool[Array, "..."]]
MOST_UNITS = 2**31 - 1


class Budget(NamedTuple):
    """How many groups each leaf may keep at a step.

    Attributes:
      specs: the leaves, by path.
      schedule: when, and how much of the way.
      targets: final sparsity of each leaf.
      distribution: how leaves share what is kept.
    """

    specs: dict[str, LeafSpec]
    schedule: Schedule
    targets: dict[str, float]
    distribution: Distribution


def choose(
    pooled: Mapping[str, Float[Array, "..."]],
    allowed: Mapping[str, Bool[Array, "..."]] | None,
    budget: Budget,
    step: Int[Array, ""] | int,
) -> Groups:
    """Returns the best groups that the budget affords, exactly as many as it says.

    Args:
      pooled: one score a group, by path.
      allowed: groups that may be kept, None for all; what is not allowed ranks last.
      budget: how many to keep.
      step: optimizer step.
    """
    specs = budget.specs
    units = {
        path: spec.pattern.unit_scores(
            pooled[path], None if allowed is None else allowed[path], spec.view
        )
        for path, spec in specs.items()
    }
    kept = budget.distribution.kept(
        budget.schedule, jnp.asarray(step), budget.targets, specs, units
    )
    best = top_k_masks([Candidates(units[path][0], kept[path], units[path][1]) for path in specs])
    return {
        path: spec.pattern.finish(
            mask, pooled[path], None if allowed is None else allowed[path], spec.view
        )
        for (path, spec), mask in zip(specs.items(), best, strict=True)
    }


def drop_and_grow(
    regrowth: DropAndGrow,
    pooled: Mapping[str, Float[Array, "..."]],
    growth: Mapping[str, Float[Array, "..."]],
    groups: Groups,
    budget: Budget,
    step: Int[Array, ""],
) -> Groups:
    """Keeps the best of what is kept, and fills the budget with what grows best.

    Dropped groups compete with the masked ones: what drops may come straight back.
    """
    kept = budget.distribution.kept(
        budget.schedule,
        step,
        budget.targets,
        budget.specs,
        {path: (pooled[path], groups[path]) for path in budget.specs},
    )
    survivors = {
        path: jnp.minimum(
            kept[path] - regrowth.dropped(budget.schedule, step, kept[path]),
            count(groups[path], len(spec.view.batch)),
        )
        for path, spec in budget.specs.items()
    }
    stay = top_k_masks([Candidates(pooled[p], survivors[p], groups[p]) for p in budget.specs])
    grow = top_k_masks(
        [
            Candidates(growth[path], kept[path] - survivors[path], ~mask)
            for path, mask in zip(budget.specs, stay, strict=True)
        ]
    )
    return {path: s | g for path, s, g in zip(budget.specs, stay, grow, strict=True)}


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


def check_countable(specs: Mapping[str, LeafSpec]) -> None:
    """Raises ValueError on a leaf with more units than 32 bits count."""
    for path, spec in specs.items():
        if spec.units > MOST_UNITS:
            raise ValueError(
                f"leaf {path!r} of shape {spec.view.shape}: {spec.pattern} would choose among "
                f"{spec.units} groups in one slice, and counts go to {MOST_UNITS}; larger groups, "
                "such as Block(4, 16), would work, so would in its rule batch_axis=0, in_axis=(), "
                "out_axis=1, which chooses in every row of a matrix"
            )


def hold(groups: Mapping[str, Bool[Array, "..."]], specs: Mapping[str, LeafSpec]):
    """Returns the group arrays as GroupMasks."""
    return {p: GroupMask(groups[p], spec.pattern, spec.view) for p, spec in specs.items()}


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


class _NoGradients(dict):
    """Stands where gradients would, and says so as soon as a score looks at it."""

    def _refuse(self, *args: Any, **kwargs: Any) -> Any:
        raise ValueError(
            "the score looks at gradients, and compute_masks was given none: "
            "compute_masks(params, rules, score=..., grads=jax.grad(loss)(params)) would work, so "
            "would a score of the weights alone, such as magnitude()"
        )

    __getitem__ = __iter__ = __len__ = __contains__ = __or__ = __ror__ = __eq__ = _refuse
    get = items = keys = values = copy = pop = _refuse


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

    >>> from jaxsparse.patterns import Unstructured
    >>> compute_masks({"w": jnp.array([1.0, -2.0])}, [Rule("w", Unstructured(), 0.5)])["w"].tolist()
    [False, True]
    """
    score, distribution = scores.as_score(score), as_distribution(distribution)
    specs = resolve(check_rules(rules), params)
    check_countable(specs)
    weights = leaves_of(params, specs)
    slopes = _NoGradients() if grads is None else gradients_of(grads, specs)
    context = ScoreContext(jnp.zeros((), jnp.int32), jnp.zeros(()), specs)
    found, _ = score.update(slopes, score.init(weights, specs), weights, context)
    budget = Budget(
        specs, schedules.one_shot(), targets_of(specs, sparsity, distribution), distribution
    )
    groups = choose(pool_scores(found, specs, weights), None, budget, 0)
    return {path: mask.expand() for path, mask in hold(groups, specs).items()}
