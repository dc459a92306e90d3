"""From scores to masks: how a budget of groups is spent."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxsparse import schedules, scores
from jaxsparse.distributions import Distribution, targets_of, uniform
from jaxsparse.patterns import GroupMask
from jaxsparse.regrowth import DropAndGrow
from jaxsparse.rules import LeafSpec, Rule, check_rules, resolve
from jaxsparse.schedules import Schedule
from jaxsparse.scores import Leaves, Score, ScoreContext
from jaxsparse.selection import Candidates, count, top_k_masks
from jaxsparse.trees import Tree, leaves_by_path

Groups = dict[str, Bool[Array, "..."]]


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


def pool_scores(found: Leaves, specs: Mapping[str, LeafSpec]) -> dict[str, Float[Array, "..."]]:
    """Pools scores of the weights' shapes; scores of the groups' shapes pass as they are.

    Raises:
      ValueError: on a missing leaf or a third shape.
    """
    pooled = {}
    for path, spec in specs.items():
        if path not in found:
            raise ValueError(f"the score returned nothing for leaf {path!r}")
        shape = found[path].shape
        if shape == spec.view.shape:
            pooled[path] = spec.pool(found[path])
        elif shape == spec.group_shape:
            pooled[path] = found[path]
        else:
            raise ValueError(
                f"the score of leaf {path!r} has shape {shape}; the weight's {spec.view.shape} "
                f"or one number a group, {spec.group_shape}, would work"
            )
    return pooled


def hold(groups: Mapping[str, Bool[Array, "..."]], specs: Mapping[str, LeafSpec]):
    """Returns the group arrays as GroupMasks."""
    return {p: GroupMask(groups[p], spec.pattern, spec.view) for p, spec in specs.items()}


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
      grads: gradients, for scores that look at them.

    Returns:
      `{"slash/path": mask}`, True is kept, in the shape of the weights.

    Raises:
      ValueError: on bad rules or sparsities, quoting path and shape.

    >>> from jaxsparse.patterns import Unstructured
    >>> compute_masks({"w": jnp.array([1.0, -2.0])}, [Rule("w", Unstructured(), 0.5)])["w"].tolist()
    [False, True]
    """
    score = score or scores.magnitude()
    distribution = distribution or uniform()
    specs = resolve(check_rules(rules), params)
    weights = {path: w for path, w in leaves_by_path(params).items() if path in specs}
    slopes = leaves_by_path(params if grads is None else grads)
    context = ScoreContext(jnp.zeros((), jnp.int32), jnp.zeros(()), specs)
    found, _ = score.update(slopes, score.init(weights, specs), weights, context)
    budget = Budget(
        specs, schedules.one_shot(), targets_of(specs, sparsity, distribution), distribution
    )
    groups = choose(pool_scores(found, specs), None, budget, 0)
    return {path: mask.expand() for path, mask in hold(groups, specs).items()}
