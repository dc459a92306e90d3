"""From one sparsity for the whole model to a number of groups for every leaf."""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import ClassVar

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jaxsparse.patterns.base import check_sparsity
from jaxsparse.patterns.rules import LeafSpec, Rule, check_rules, resolve
from jaxsparse.pruning.schedules import Schedule
from jaxsparse.top_k import common_bits, count, over, search_thresholds
from jaxsparse.trees import Tree
from jaxsparse.uint64 import UInt64, total

Scores = Mapping[str, tuple[Float[Array, "..."], Bool[Array, "..."] | None]]


@dataclasses.dataclass(frozen=True)
class Distribution:
    """Base of the distributions: the same sparsity everywhere.

    Attributes:
      shares: whether it shares out a sparsity that it is given; else it has its own.
    """

    shares: ClassVar[bool] = True

    def fill(self, sparsity: float, specs: Sequence[LeafSpec]) -> dict[str, float]:
        """Targets of the leaves whose rules name none."""
        return {spec.path: sparsity for spec in specs}

    def targets(self, specs: Mapping[str, LeafSpec], sparsity: float | None) -> dict[str, float]:
        """`js.targets` for rules that are resolved already."""
        rest = [spec for spec in specs.values() if known_target(spec) is None]
        if sparsity is not None:
            check_sparsity("sparsity", sparsity)
            found = self.fill(sparsity, rest) if rest else {}
        elif not rest:
            found = {}
        else:
            raise ValueError(
                f"no sparsity for leaf {rest[0].path!r}: neither its rule names one nor prune; "
                "Rule(..., sparsity=0.9) or prune(..., sparsity=0.9) would work"
            )
        known = {path: known_target(spec) for path, spec in specs.items()}
        return found | {path: target for path, target in known.items() if target is not None}

    def kept(
        self,
        schedule: Schedule,
        step: Int[Array, ""],
        targets: Mapping[str, float],
        specs: Mapping[str, LeafSpec],
        scores: Scores,
    ) -> dict[str, Int[Array, "*batch"]]:
        """How many units every batch slice of every leaf keeps after this step's update.

        `scores` holds what selection ranks, (unit scores, allowed or None); a
        distribution that is fixed beforehand does not look at them.
        """
        del scores
        kept = {}
        for path, spec in specs.items():
            dropped = schedule.share(step, targets[path], spec.units, spec.pattern.max_sparsity)
            left = spec.units - dropped.low.astype(jnp.int32)
            kept[path] = jnp.broadcast_to(left, spec.view.batch_shape)
        return kept


@dataclasses.dataclass(frozen=True)
class _ERK(Distribution):
    def fill(self, sparsity: float, specs: Sequence[LeafSpec]) -> dict[str, float]:
        sizes = {spec.path: math.prod(spec.view.shape) for spec in specs}
        raw = {spec.path: _relative_density(spec) for spec in specs}
        budget = (1 - sparsity) * sum(sizes.values())
        dense: set[str] = set()
        while True:
            rest = [path for path in sizes if path not in dense]
            left = budget - sum(sizes[path] for path in dense)
            share = sum(raw[path] * sizes[path] for path in rest)
            scale = left / share if share else 0.0  # nothing is left, or only empty leaves
            over = {path for path in rest if scale * raw[path] > 1}
            if not over:
                return {p: 0.0 if p in dense else 1 - scale * raw[p] for p in sizes}
            dense |= over


@dataclasses.dataclass(frozen=True)
class _Global(Distribution):
    minimum: float = 0.0
    maximum: float = 0.98
    by_size: bool = False

    def __post_init__(self):
        check_sparsity("global_: minimum", self.minimum)
        check_sparsity("global_: maximum", self.maximum)
        if self.minimum > self.maximum:
            raise ValueError(f"global_: minimum={self.minimum} > maximum={self.maximum}")

    def fill(self, sparsity: float, specs: Sequence[LeafSpec]) -> dict[str, float]:
        if not self.minimum <= sparsity <= self.maximum:
            raise ValueError(
                f"global_: sparsity {sparsity} is out of reach with every leaf between "
                f"minimum={self.minimum} and maximum={self.maximum}"
            )
        self._ranked(specs)
        return super().fill(sparsity, specs)

    def kept(self, schedule, step, targets, specs, scores):
        joint = {path: s for path, s in specs.items() if known_target(s) is None}
        alone = {path: s for path, s in specs.items() if path not in joint}
        kept = super().kept(schedule, step, targets, alone, scores)
        for specs in self._ranked(joint.values()):  # `fill` is not asked where targets are given
            kept |= self._joint(schedule, step, targets[specs[0].path], specs, scores)
        return kept

    def _ranked(self, specs: Iterable[LeafSpec]) -> list[list[LeafSpec]]:
        """Leaves with one threshold each, refused where it would compare unlike groups."""
        ranked: dict[int, list[LeafSpec]] = {}
        for spec in specs:
            ranked.setdefault(spec.pattern.group_size(spec.view), []).append(spec)
        if len(ranked) > 1 and not self.by_size:
            listed = ", ".join(f"{size} in {each[0].path!r}" for size, each in ranked.items())
            raise ValueError(
                "global_ ranks groups against each other, so they must be of one size, but their "
                f"entries are {listed}; by_size=True, uniform() or erk() would work"
            )
        return list(ranked.values())

    def _joint(self, schedule, step, target, specs, scores) -> dict[str, Array]:
        """One threshold over all leaves, the counts of each slice clipped to its bounds."""
        bits = common_bits([scores[spec.path] for spec in specs])
        shapes = [spec.view.batch_shape for spec in specs]
        bounds = [self._bounds(schedule, step, spec) for spec in specs]
        size = sum(math.prod(shape) * spec.units for shape, spec in zip(shapes, specs, strict=True))
        wanted = UInt64.of(size) - schedule.share(step, target, size)

        def clipped(counts):
            return [jnp.clip(c, *b) for c, b in zip(counts, bounds, strict=True)]

        def enough(counts):
            good = _sum(clipped(counts)) >= wanted
            return [jnp.broadcast_to(good, shape) for shape in shapes]

        cuts = search_thresholds(bits, shapes, enough)
        cuts = [over(c, b) for c, b in zip(cuts, bits, strict=True)]
        above = clipped([count(b > c, len(s)) for b, c, s in zip(bits, cuts, shapes, strict=True)])
        at = clipped([count(b >= c, len(s)) for b, c, s in zip(bits, cuts, shapes, strict=True)])
        # What the threshold leaves over goes to the groups that equal it, leaf by leaf.
        used = _sum(above)
        rest = jnp.where(wanted >= used, (wanted - used).clamp32(), jnp.uint32(0))
        free = jnp.concatenate([(a - b).reshape(-1) for a, b in zip(at, above, strict=True)])
        free = free.astype(jnp.uint32)

        def give(rest, free):
            gift = jnp.minimum(rest, free)
            return rest - gift, gift

        _, gifts = lax.scan(give, rest, free)
        kept, start = {}, 0
        for spec, low in zip(specs, above, strict=True):
            gift = gifts[start : start + low.size].reshape(low.shape)
            kept[spec.path] = low + gift.astype(jnp.int32)
            start += low.size
        return kept

    def _bounds(self, schedule, step, spec: LeafSpec) -> tuple[int, Array]:
        """Fewest and most units a slice keeps; the minimum waits until pruning has begun."""
        floor = spec.units - round(self.maximum * spec.units)
        # A schedule that begins above the minimum would raise it, and so would `given`.
        least = schedule.share(step, self.minimum, spec.units).low.astype(jnp.int32)
        least = jnp.minimum(least, round(self.minimum * spec.units))
        return floor, spec.units - least


def uniform() -> Distribution:
    """The same sparsity for every leaf."""
    return Distribution()


def erk() -> Distribution:
    """Erdos-Renyi-Kernel: density of a leaf proportional to sum(dims) / prod(dims).

    Scaled so that the leaves together reach the sparsity; a leaf that would pass
    density 1 stays dense and the others give what it takes. Batch axes are not
    dims. Evci et al. 2020, arXiv 1911.11134.
    """
    return _ERK()


def global_(minimum: float = 0.0, maximum: float = 0.98, *, by_size: bool = False) -> Distribution:
    """One threshold for all leaves: the best groups of the whole model are kept.

    No leaf (no layer of a stack) ends below `minimum` or above `maximum`
    sparsity; what a bound takes or leaves over is redistributed to the others, so
    the total is exact. Groups are what is counted, and all must be of one size; with
    `by_size` those of each size have a threshold of their own and reach the sparsity
    by themselves, blocks of attention and neurons for example.
    N:M leaves and leaves whose rule names a sparsity stay as they are.
    """
    return _Global(minimum, maximum, by_size)


def targets(
    rules: Sequence[Rule],
    params: Tree,
    sparsity: float | None = None,
    distribution: Distribution | None = None,
) -> dict[str, float]:
    """Returns the final sparsity of every leaf that a rule names.

    A rule's own sparsity comes first, n:m is 1 - n/m, and `distribution` fills
    the rest so that they reach `sparsity` together. A `js.allocation.Allocation` has their
    sparsities itself.

    Raises:
      ValueError: on bad rules, on a leaf that neither names, and on an allocation of others.
    """
    specs = resolve(check_rules(rules), params)
    return as_distribution(distribution).targets(specs, sparsity)


def as_distribution(distribution: Distribution | None) -> Distribution:
    """The distribution, uniform by default; a TypeError on anything else."""
    if distribution is None:
        return uniform()
    if not isinstance(distribution, Distribution):
        raise TypeError(f"{distribution!r} is no distribution; uniform() or erk() would work")
    return distribution


def known_target(spec: LeafSpec) -> float | None:
    """The final sparsity that a rule says itself, None if a distribution is to fill it in."""
    if spec.sparsity is None and spec.pattern.fixed:
        return spec.pattern.max_sparsity
    return spec.sparsity


def _relative_density(spec: LeafSpec) -> float:
    dims = [size for axis, size in enumerate(spec.view.shape) if axis not in spec.view.batch]
    return sum(dims) / math.prod(dims) if math.prod(dims) else 0.0


def _sum(counts: list[Array]) -> UInt64:
    return total([UInt64(jnp.zeros_like(c, jnp.uint32), c.astype(jnp.uint32)) for c in counts])
