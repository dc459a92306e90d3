"""What a scan prunes one at a time, and in which order each loses its groups or units."""

import functools
import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxsparse.allocation.narrowing import Score as UnitScore
from jaxsparse.allocation.narrowing import chosen_groups, unit_masks, unit_scores
from jaxsparse.allocation.sensitivity.changes import Target
from jaxsparse.graph import Structure, StructuredGroup
from jaxsparse.patterns.base import Pattern, check_sparsity
from jaxsparse.patterns.rules import LeafSpec, Rule, check_rules, resolve
from jaxsparse.patterns.views import View
from jaxsparse.pruning.choosers import check_countable
from jaxsparse.pruning.masking import check_finite, select
from jaxsparse.pruning.prune import NoGradients
from jaxsparse.pruning.scores import Leaves, Score, ScoreContext, as_score, leaves_of, pool_scores
from jaxsparse.top_k import ordered_bits, over
from jaxsparse.trees import Tree, leaves_by_path, near_misses

Stacked = Literal["apart", "together"]


class Cells:
    """Everything that can be pruned, ranked once; how much of it goes is no part of a program.

    Attributes:
      specs: pattern and view of the leaves.
      structure: groups of units, None for none.
      targets: by name: path of a leaf, `path[2]` of a kernel of a stack, name of a group.
      places: by path of a leaf and name of a group, the place of every group or unit among those
        of its kernel, 0 for the one that stays longest; -1 is what stays whatever goes, the n
        largest of every m.
    """

    def __init__(
        self,
        params: Tree,
        rules: Sequence[Rule] | None,
        score: Score | Tree | None,
        structure: Structure | None,
        groups: Sequence[str] | None,
        unit_score: UnitScore,
        stacked: Stacked | None,
    ):
        if stacked not in (None, "apart", "together"):
            raise ValueError(f"scan: stacked={stacked!r} is neither 'apart' nor 'together'")
        self.structure = _chosen(structure, groups)
        none = self.structure is not None and rules is None
        self.specs = {} if none else resolve(check_rules(rules or ()), params)
        check_countable(self.specs)
        for path, leaf in leaves_by_path(params).items():
            if isinstance(leaf, jax.ShapeDtypeStruct):
                raise TypeError(
                    f"scan: {path!r} is {leaf}, a shape: models are evaluated, so arrays would work"
                )
        weights = leaves_of(params, self.specs)
        check_finite(weights)
        units = () if self.structure is None else self.structure.groups
        self._groups = {group.name: group for group in units}
        # Which kernels of a leaf a target is; () is all.
        self._kernels: dict[str, tuple[str, tuple[int, ...]]] = {}
        self.targets = self._targets(stacked)
        found = _scores(score, weights, self.specs) if self.specs else {}
        self.places: dict[str, Array] = {
            path: _places(found[path], spec.pattern, spec.view) for path, spec in self.specs.items()
        }
        if self.structure is not None:
            for name, scores in unit_scores(self.structure, params, unit_score).items():
                order = np.argsort(-scores, kind="stable")
                self.places[name] = jnp.asarray(np.argsort(order), jnp.int32)

    def _targets(self, stacked: Stacked | None) -> dict[str, Target]:
        found: dict[str, Target] = {}
        for path, spec in self.specs.items():
            _check_leaf(path, spec, stacked)
            batch, limit = spec.view.batch_shape, spec.pattern.max_sparsity
            size, kernels = math.prod(spec.view.shape), math.prod(batch)
            # Of n:m, whose groups are counted by what is chosen in them, this is below 0.
            padding = max(spec.units * spec.pattern.group_size(spec.view) - size // kernels, 0)
            if not batch or stacked == "together":
                found[path], self._kernels[path] = (
                    Target("leaf", spec.units, size, limit, kernels * padding),
                    (path, ()),
                )
                continue
            for index in itertools.product(*map(range, batch)):
                name = f"{path}[{', '.join(map(str, index))}]"
                found[name] = Target("kernel", spec.units, size // kernels, limit, padding)
                self._kernels[name] = path, index
        for name, group in self._groups.items():
            if name in found:
                raise ValueError(
                    f"scan: {name!r} is both a leaf and a group of units; rules or groups= that "
                    "leave one of them out would work"
                )
            found[name] = Target("group", group.units)
        return found

    def prune(self, leaves: Mapping[str, Any], pruned: Mapping[str, int]) -> dict[str, Array]:
        """By path the leaves that change where so many units of each named target go."""
        counts: dict[str, np.ndarray] = {}
        new: dict[str, Array] = {}
        for name, count in pruned.items():
            if name in self._kernels:
                path, index = self._kernels[name]
                spec = self.specs[path]
                whole = np.full(spec.view.batch_shape, spec.units, np.int32)
                counts.setdefault(path, whole)[index] -= count
        for path, kept in counts.items():
            spec = self.specs[path]
            keep = _keeper(spec.pattern, spec.view)
            new[path] = keep(leaves[path], self.places[path], kept)
        for name, count in pruned.items():
            if name in self._groups:
                group = self._groups[name]
                mine = {m.path: new.get(m.path, leaves[m.path]) for m in group.members}
                kept = np.int32(group.units - count)
                new |= _without_units(mine, self.places[name], kept, group)
        return new


@functools.lru_cache(maxsize=256)  # leaves of one shape and pattern share a compilation
def _keeper(pattern: Pattern, view: View) -> Callable[..., Array]:
    @jax.jit
    def keep(weight, place, kept):
        mask = pattern.expand(place < over(kept, place), view)
        return select(mask, jnp.asarray(weight), 0)

    return keep


@functools.partial(jax.jit, static_argnames="group")
def _without_units(leaves, place, kept, group: StructuredGroup):
    masks = unit_masks(Structure((group,)), leaves, {group.name: place < kept})
    return {path: select(mask, jnp.asarray(leaves[path]), 0) for path, mask in masks.items()}


def check_ratios(
    ratios: Sequence[float], targets: Mapping[str, Target], specs
) -> tuple[float, ...]:
    """The ratios, rising and within what every target can give; an error names what is not."""
    if not isinstance(ratios, Iterable):
        raise TypeError(f"scan: ratios={ratios!r} is no sequence; ({ratios!r},) would work")
    found = tuple(map(float, ratios))
    # Said of what is right, so that NaN is wrong.
    if not found or not all(a < b for a, b in itertools.pairwise((0.0, *found, 1.0))):
        raise ValueError(
            f"scan: ratios={list(ratios)}; fractions to prune that rise between 0 and 1, such as "
            "(0.1, 0.3, 0.5, 0.7, 0.9), would work: 0 is the dense model, of which every scan has "
            "the metric"
        )
    for path, spec in specs.items():
        check_sparsity(f"scan: ratios of {path!r}", found[-1], spec.pattern)
    for name, target in targets.items():
        if target.kind == "group" and not target.kept(found[-1]):
            most = (target.units - 1) / target.units
            raise ValueError(
                f"scan: ratio {found[-1]} leaves none of the {target.units} units of {name!r}, and "
                f"one always stays; ratios up to {most:g}, or groups= without it, would work"
            )
    return found


def _chosen(structure: Structure | None, groups: Sequence[str] | None) -> Structure | None:
    """The structure with the groups that are meant alone."""
    if structure is None:
        if groups is not None:
            raise ValueError(
                f"scan: groups={groups!r} of no structure; structure=js.graph.structure(fn, "
                "params, *inputs) would work"
            )
        return None
    return Structure(chosen_groups(structure, groups, "scan"), structure.shapes)


def _check_leaf(path: str, spec: LeafSpec, stacked: Stacked | None) -> None:
    shape = spec.view.shape
    if 0 in shape:
        raise ValueError(
            f"scan: {path!r} of shape {shape} has no entries; a rule that leaves it out would work"
        )
    if spec.sparsity is not None:
        raise ValueError(
            f"scan: ratios say how sparse {path!r} is, but its rule says sparsity={spec.sparsity}; "
            "a rule without sparsity would work"
        )
    if spec.view.batch and stacked is None:
        raise ValueError(
            f"scan: {path!r} of shape {shape} is a stack of {math.prod(spec.view.batch_shape)} "
            f"kernels, {spec.view}; stacked='apart', a curve for each of them, or "
            "stacked='together', one at which all are as sparse, as a distribution can have it, "
            "would work"
        )


def _scores(
    score: Score | Tree | None, weights: Leaves, specs: Mapping[str, LeafSpec]
) -> dict[str, Float[Array, "..."]]:
    """One score a group of every leaf."""
    if score is None or callable(getattr(score, "init", None)):
        score = as_score(score)
        context = ScoreContext(jnp.zeros((), jnp.int32), jnp.zeros(()), dict(specs))
        slopes = NoGradients(
            "the score looks at gradients, and scan was given none: scores by path, score={path: "
            "array}, would work, so would a score of the weights alone, such as magnitude()"
        )
        given, _ = score.update(slopes, score.init(weights, dict(specs)), weights, context)
    else:
        leaves = leaves_by_path(score)
        for path in specs:
            if path not in leaves:
                raise ValueError(f"scan: no scores for leaf {path!r}; {near_misses(path, leaves)}")
        given = {path: jnp.asarray(leaves[path]) for path in specs}
    for path in specs:
        bad = int(jnp.isnan(given[path]).sum())
        if bad:
            raise ValueError(
                f"scan: {bad} scores of {path!r}, of shape {given[path].shape}, are NaN, which "
                "have no order; numbers would work"
            )
    return pool_scores(given, specs, weights)


@functools.partial(jax.jit, static_argnames=("pattern", "view"))
def _places(scores: Float[Array, "..."], pattern: Pattern, view: View) -> Int[Array, "..."]:
    """The places of a leaf's groups: of equal scores the first stay, as in `compute_masks`."""
    units, _ = pattern.unit_scores(scores, None, view)
    ranked = ~ordered_bits(units).reshape(*view.batch_shape, -1)
    order = jnp.argsort(ranked, axis=-1, stable=True)
    place = jnp.argsort(order, axis=-1).astype(jnp.int32).reshape(units.shape)
    if type(pattern).finish is Pattern.finish:  # groups are what is chosen
        return place
    # What a pattern makes of the units that are kept it says of truths alone: so it is asked bit
    # by bit of the place.
    bits = jnp.arange(max(1, (pattern.units(view) - 1).bit_length()))
    asked = (place >> over(bits, jnp.zeros((1,) * (place.ndim + 1)))) & 1 == 1
    found = jax.vmap(lambda kept: pattern.finish(kept, scores, None, view))(asked)
    entries = jnp.sum(found.astype(jnp.int32) << over(bits, found), axis=0)
    always = pattern.finish(jnp.zeros_like(place, bool), scores, None, view)
    return jnp.where(always, -1, entries)
