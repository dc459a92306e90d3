"""What AMC decides: how many units of each group stay, or how many entries of each leaf."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxsparse.allocation.allocation import Allocation
from jaxsparse.allocation.amc.environment import Environment, environment
from jaxsparse.allocation.amc.features import features_of, meeting
from jaxsparse.allocation.amc.reconstruction import Readers
from jaxsparse.allocation.amc.terms import terms_of
from jaxsparse.allocation.costs.flops import Cost
from jaxsparse.allocation.costs.kept import entries_of
from jaxsparse.allocation.costs.program import Layer
from jaxsparse.allocation.narrowing import Score, chosen_groups, unit_masks, unit_scores
from jaxsparse.graph import Structure, StructuredGroup
from jaxsparse.patterns.base import widen
from jaxsparse.patterns.rules import LeafSpec, Rule, check_rules, resolve
from jaxsparse.pruning.choosers import check_countable
from jaxsparse.pruning.distributions import known_target
from jaxsparse.pruning.masking import check_finite, mask_params
from jaxsparse.pruning.scores import leaves_of, pool_scores
from jaxsparse.top_k import Candidates, top_k_masks
from jaxsparse.trees import Tree, leaves_by_path, replace_by_path

LEVELS = 128  # options of a decision at most


class Plan(Protocol):
    """What a search asks of a way to prune.

    Attributes:
      names: of what is decided, step by step.
      counts: by step how many each option keeps, ascending; the last keeps all.
      paths: by step the weights whose layers the agent sees.
      arrays: what `applied` takes, an argument of whatever is compiled with it.
    """

    @property
    def names(self) -> tuple[str, ...]: ...

    @property
    def counts(self) -> tuple[tuple[int, ...], ...]: ...

    @property
    def paths(self) -> tuple[tuple[str, ...], ...]: ...

    @property
    def arrays(self) -> Any: ...

    def total(self, cost: Cost, options: Mapping[int, int]) -> int | float:
        """What the model costs with the options of some steps, the others being whole."""
        ...

    def applied(
        self, arrays: Any, params: Tree, options: Int[Array, " steps"]
    ) -> tuple[Tree, dict[str, Array]]:
        """Parameters that are pruned so, and the masks; options may be traced."""
        ...

    def allocation(self, options: Sequence[int], about: Mapping[str, Any]) -> Allocation:
        """The distribution of it."""
        ...


def walk_through(
    plan: Plan, cost: Cost, budget: float | None, layers: Sequence[Layer]
) -> Environment:
    """The environment of a plan.

    Raises:
      ValueError: as `environment` and `terms_of`.
    """
    pairs = meeting(plan.paths, plan.names, layers)
    terms = terms_of(lambda options: plan.total(cost, options), plan.counts, pairs, plan.names)
    features, shares = features_of(plan.paths, layers)
    kept = [np.array(counts) / counts[-1] for counts in plan.counts]
    return environment(kept, terms, math.inf if budget is None else budget, features, shares)


@dataclasses.dataclass(frozen=True)
class UnitPlan:
    """Whole units go, those of the smallest scores, and their readers are fitted anew.

    Attributes:
      structure: the groups, in the order in which units are read.
      counts: see `Plan`.
      places: by group the place of each unit among the scores, 0 for the largest.
      readers: None to leave them as they are.
    """

    structure: Structure
    counts: tuple[tuple[int, ...], ...]
    places: Mapping[str, Int[np.ndarray, " units"]]
    readers: Readers | None

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(group.name for group in self.structure.groups)

    @property
    def paths(self) -> tuple[tuple[str, ...], ...]:
        return tuple(
            tuple(member.path for member in group.weights if member.role == "reads")
            for group in self.structure.groups
        )

    @property
    def arrays(self) -> Any:
        return {} if self.readers is None else self.readers.problems

    def total(self, cost: Cost, options: Mapping[int, int]) -> int | float:
        widths = {self.names[step]: self.counts[step][at] for step, at in options.items()}
        return cost.total(widths=widths)

    def applied(
        self, arrays: Any, params: Tree, options: Int[Array, " steps"]
    ) -> tuple[Tree, dict[str, Array]]:
        kept = {}
        for step, name in enumerate(self.names):
            width = jnp.asarray(self.counts[step])[options[step]]
            kept[name] = jnp.asarray(self.places[name]) < width
        masks = unit_masks(self.structure, params, kept)
        if self.readers is not None:
            new = self.readers.solved(leaves_by_path(params), arrays, kept)
            params = replace_by_path(params, new)
        return mask_params(params, masks), masks

    def allocation(self, options: Sequence[int], about: Mapping[str, Any]) -> Allocation:
        widths = {name: self.counts[s][options[s]] for s, name in enumerate(self.names)}
        return Allocation(widths=widths, about=about)


def unit_plan(
    structure: Structure,
    params: Tree,
    *,
    groups: Sequence[str] | None,
    lower: float,
    divisor: int,
    levels: int,
    score: Score,
    readers: Callable[[Sequence[StructuredGroup]], Readers | None],
) -> UnitPlan:
    """The plan for units.

    Options are the multiples of a divisor from the lower bound on, which is rounded up to one,
    and the whole; of more than `levels` so many, evenly apart. What an action says is rounded down
    to them.

    Raises:
      ValueError: for what is no group, and a model without any.
    """
    chosen = chosen_groups(structure, groups, "amc")
    small = Structure(chosen, structure.shapes)
    counts = tuple(_multiples(group.units, lower, divisor, levels) for group in chosen)
    places = {}
    for name, scores in unit_scores(small, params, score).items():
        places[name] = np.empty(len(scores), np.int32)
        places[name][np.argsort(-scores, kind="stable")] = np.arange(len(scores))
    return UnitPlan(small, counts, places, readers(chosen))


def _multiples(units: int, lower: float, divisor: int, levels: int = LEVELS) -> tuple[int, ...]:
    """How many units may be kept.

    >>> _multiples(20, 0.3, 8), _multiples(4, 0.3, 8), _multiples(80, 0.1, 8, 4)
    ((8, 16, 20), (4,), (8, 32, 56, 80))
    """
    first = max(-(-math.ceil(lower * units - 1e-9) // divisor) * divisor, divisor)
    found = (*range(first, units, divisor), units)
    places = np.linspace(0, len(found) - 1, min(levels, len(found)))
    return tuple(found[int(place)] for place in places.round())


@dataclasses.dataclass(frozen=True)
class EntryPlan:
    """Entries, or groups of a pattern, go, those of the smallest magnitude.

    Attributes:
      specs: of the leaves, in the order of the program.
      counts: see `Plan`, of one kernel of a stack.
      scores: by path of every group, and whether it may stay.
    """

    specs: Mapping[str, LeafSpec]
    counts: tuple[tuple[int, ...], ...]
    scores: Mapping[str, Float[Array, "..."]]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.specs)

    @property
    def paths(self) -> tuple[tuple[str, ...], ...]:
        return tuple((path,) for path in self.specs)

    @property
    def arrays(self) -> Any:
        return self.scores

    def _density(self, step: int, at: int) -> float:
        return self.counts[step][at] / self.counts[step][-1]

    def total(self, cost: Cost, options: Mapping[int, int]) -> int | float:
        found = {}
        for step, at in options.items():
            path, spec = self.names[step], self.specs[self.names[step]]
            most = entries_of(spec, self.counts[step][at])
            found[path] = most / math.prod(spec.view.matrix_shape)
        return cost.total(densities=found)

    def applied(
        self, arrays: Any, params: Tree, options: Int[Array, " steps"]
    ) -> tuple[Tree, dict[str, Array]]:
        specs, scores = self.specs, arrays
        units = {p: s.pattern.unit_scores(scores[p], None, s.view) for p, s in specs.items()}
        candidates = []
        for step, (path, spec) in enumerate(specs.items()):
            kept = jnp.asarray(self.counts[step])[options[step]]
            kept = jnp.broadcast_to(kept, spec.view.batch_shape)
            candidates.append(Candidates(units[path][0], kept, units[path][1]))
        masks = {}
        for (path, spec), mask in zip(specs.items(), top_k_masks(candidates), strict=True):
            masks[path] = spec.expand(spec.pattern.finish(mask, scores[path], None, spec.view))
        return mask_params(params, masks), masks

    def allocation(self, options: Sequence[int], about: Mapping[str, Any]) -> Allocation:
        found = {path: 1 - self._density(s, options[s]) for s, path in enumerate(self.names)}
        return Allocation(sparsities=found, about=about)


def entry_plan(
    rules: Sequence[Rule], params: Tree, layers: Sequence[Layer], *, lower: float, levels: int
) -> EntryPlan:
    """The plan for entries.

    Options are as many densities, evenly apart from the lower bound to 1, each a whole number of
    groups.

    Raises:
      ValueError: a rule that fixes its sparsity, and as `js.prune` for other rules; weights that
        are not finite; a leaf that enters no product.
    """
    specs = resolve(check_rules(rules), params)
    check_countable(specs)
    place = {layer.path: number for number, layer in reversed([*enumerate(layers)])}
    for path, spec in specs.items():
        if known_target(spec) is not None:
            raise ValueError(
                f"amc: the rule of {path!r} says its sparsity, {known_target(spec):.6g}, which is "
                "what is searched; a rule without, or one that leaves the leaf out, would work"
            )
        if path not in place:
            raise ValueError(
                f"amc: {path!r} of shape {spec.view.shape} enters no product, so it costs nothing; "
                "rules that leave it out would work"
            )
    specs = {path: specs[path] for path in sorted(specs, key=lambda path: place[path])}
    found = leaves_of(params, specs)
    check_finite(found)
    sizes = {path: jnp.abs(widen(leaf)) for path, leaf in found.items()}
    scores = pool_scores(sizes, specs, found)
    shares = np.linspace(lower, 1, levels)
    counts = []
    for spec in specs.values():
        kept = {max(math.ceil(share * spec.units - 1e-9), 1) for share in shares}
        counts.append(tuple(sorted(kept | {spec.units})))
    return EntryPlan(specs, tuple(counts), scores)
