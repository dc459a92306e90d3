"""`prune`: whole heads and neurons go, under a budget, with no training."""

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxsparse.allocation import Flops, unit_masks
from jaxsparse.graph import Structure, StructuredGroup, structure
from jaxsparse.pruning.masking import mask_params
from jaxsparse.recipes.retrain_free.budgets import Budget, FlopsBudget, LatencyBudget
from jaxsparse.recipes.retrain_free.fisher import as_tuple, unit_gradients
from jaxsparse.recipes.retrain_free.readers import scaled
from jaxsparse.recipes.retrain_free.rearranging import rearrange as rearranged
from jaxsparse.recipes.retrain_free.tuning import tuned_scales
from jaxsparse.text import columned
from jaxsparse.trees import Tree, near_misses


@dataclasses.dataclass(frozen=True)
class PrunedGroup:
    """What `prune` kept of one group.

    Attributes:
      group: which units there were.
      kept: numbers of those that stay.
      fisher: Fisher information of every unit, the sum of squared gradients over batches.
      scales: of the units that stay.
      untuned: why the scales are 1, None where they were found.
    """

    group: StructuredGroup
    kept: Int[np.ndarray, " kept"]
    fisher: Float[np.ndarray, " units"]
    scales: Float[np.ndarray, " kept"]
    untuned: str | None = None

    @property
    def lost(self) -> float:
        """The share of the group's Fisher information that went."""
        total = float(self.fisher.sum())
        return 1 - float(self.fisher[self.kept].sum()) / total if total else 0.0


@dataclasses.dataclass(frozen=True)
class RetrainFreeReport:
    """What `prune` did; `str(report)` has a line for every group.

    Attributes:
      groups: in the order in which units are read.
      flops_before, flops: of the traced program's products, two for a multiplication.
      seconds_before, seconds: by the table of latency; None without one.
    """

    groups: tuple[PrunedGroup, ...]
    flops_before: int
    flops: int
    seconds_before: float | None = None
    seconds: float | None = None

    def __str__(self) -> str:
        rows: list[tuple[str, ...]] = [("group", "kept", "of", "Fisher lost", "scales", "")]
        for each in self.groups:
            low, high = each.scales.min(), each.scales.max()
            scales = "1" if each.untuned else f"{low:.2f} to {high:.2f}"
            size = f"{each.group.units} {each.group.kind}"
            lost = f"{each.lost:.1%}"
            rows.append(
                (each.group.name, str(len(each.kept)), size, lost, scales, each.untuned or "")
            )
        share = self.flops / self.flops_before if self.flops_before else 1.0
        head = f"{self.flops:,} of {self.flops_before:,} FLOPs ({share:.1%})"
        if self.seconds is not None:
            head += f", {self.seconds:g} of {self.seconds_before:g} s by the table"
        return "\n".join([head, *columned(rows, {0, 2, 4, 5})])


class RetrainFree(NamedTuple):
    """What `prune` found.

    Attributes:
      params: as given; +0 where masks are, and scales in the weights that read units.
      masks: by path, True is kept; of every leaf that units lie in. For `js.graph.shrink`.
      report: what each group kept.
    """

    params: Tree
    masks: dict[str, Bool[Array, "..."]]
    report: RetrainFreeReport


def prune(
    fn: Callable[..., Any],
    params: Tree,
    batches: Iterable[tuple[Any, Any]],
    loss: Callable[[Any, Any], Any],
    *,
    flops: float | None = None,
    seconds: float | None = None,
    latency: Mapping[tuple[str, int], float] | None = None,
    groups: str = ".*",
    rearrange: bool = True,
    tune: bool = True,
    untuned: Sequence[str] = (),
    blocks: Mapping[str, tuple[int, int]] | None = None,
) -> RetrainFree:
    """Prunes whole heads and neurons to a budget, from a few labelled batches, without training.

    Three steps, each on what `js.graph.structure` finds in the traced model, so on any
    architecture; with grouped queries a unit is a key head with all its query heads:

    1. The units with the most Fisher information under the budget are kept, the sum over
       batches of (dL/dm)², m a factor on what the unit contributes (`unit_gradients`).
    2. Inside each group as many are kept, but those without which gradients add up to least
       (`rearrange`).
    3. Kept units are scaled by least squares, group by group, so that layers that read them
       come near to those of a teacher, pruned by step 1 to the square root of the budget
       (`tuned_scales`). Scales are folded into the weights that read units.

    Every group keeps one unit at least. FLOPs are two for every multiplication of a product,
    counted in the trace at the first batch's shapes. Where units of two groups meet in one
    product, as in hidden layers that follow each other, what one costs depends on the other:
    the search then takes what a unit costs in the dense model, and the tightness by which the
    count of the whole meets the budget. Elsewhere it is exact.

    Args:
      fn: called as fn(params, *inputs): the model, in evaluation mode.
      params: its weights, of any floating dtype.
      batches: pairs (inputs, targets) of equal weight, inputs an array or a tuple of arrays.
      loss: called as loss(outputs, targets): one number, the mean over the batch.
      flops: what may be left, as a share of the dense program's.
      seconds: what may be left by `latency`; in the place of `flops`.
      latency: measured seconds by (name of a group, how many units it keeps). Numbers that are
        not there are not chosen; the whole must be there. Names are those of
        `js.graph.structure(fn, params, *inputs)`; `fit_latency` takes noise off.
      groups: regular expression of the names of groups that may be pruned.
      rearrange: whether there is step 2.
      tune: whether there is step 3.
      untuned: names of groups whose scales stay 1; the source leaves out the first heads.
      blocks: as in `js.graph.structure`.

    Returns:
      Weights, masks by path and a report. `js.graph.shrink(fn, found.params, found.masks,
      *inputs)` makes the model smaller.

    Raises:
      ValueError: a budget that is none or out of reach, quoting the lowest; a table without a
        group or of impossible numbers; no heads and no neurons, or none by these names; a loss
        that is not one number; gradients that are not finite, or all 0; weights that are no
        floats; no batches. All but gradients before anything is computed.
      TypeError: batches that are no pairs.

    Example:
      >>> import jax, jax.numpy as jnp, jaxsparse as js
      >>> def mlp(params, x):
      ...     return x + jnp.tanh(x @ params["up"]) @ params["down"]
      >>> keys = jax.random.split(jax.random.key(0), 4)
      >>> params = {
      ...     "up": jax.random.normal(keys[0], (4, 16)), "down": jax.random.normal(keys[1], (16, 4))
      ... }
      >>> batches = [(jax.random.normal(key, (8, 4)), jnp.zeros((8, 4))) for key in keys]
      >>> loss = lambda outputs, targets: jnp.mean((outputs - targets) ** 2)
      >>> found = prune(mlp, params, batches, loss, flops=0.5)
      >>> small, run, _ = js.graph.shrink(mlp, found.params, found.masks, batches[0][0])
      >>> small["up"].shape, small["down"].shape
      ((4, 8), (8, 4))

    References:
      Kwon et al. 2022, arXiv 2204.09656.
    """
    pairs = _pairs(batches)
    inputs = as_tuple(pairs[0][0])
    whole = structure(fn, params, *inputs, blocks=blocks)
    chosen = _chosen(whole.groups, groups)
    _check_names("untuned", untuned, chosen)
    counted = Flops(fn, params, *inputs, blocks=blocks)
    budget = _budget(counted, chosen, flops, seconds, latency)

    gradients = unit_gradients(fn, params, pairs, loss, chosen)
    fisher = {name: (found**2).sum(0) for name, found in gradients.items()}
    kept = budget.search(fisher)
    if rearrange:
        kept = {name: rearranged(gradients[name], units) for name, units in kept.items()}
    scales = {name: units.astype(np.float64) for name, units in kept.items()}
    left = dict.fromkeys(kept, "not asked for")
    if tune:
        teacher = budget.looser().search(fisher)
        scales, left = tuned_scales(fn, params, pairs, chosen, kept, teacher, untuned)

    masks = whole.resolve(unit_masks(Structure(tuple(chosen)), params, kept))
    found = scaled(params, chosen, {n: np.where(kept[n], scales[n], 1.0) for n in kept})
    rows = tuple(
        PrunedGroup(
            group,
            np.flatnonzero(kept[group.name]),
            fisher[group.name],
            scales[group.name][kept[group.name]],
            left.get(group.name),
        )
        for group in chosen
    )
    widths = {name: int(units.sum()) for name, units in kept.items()}
    report = RetrainFreeReport(
        rows, 2 * counted.total(), 2 * counted.total(widths), *budget.seconds(kept)
    )
    return RetrainFree(mask_params(found, masks), masks, report)


def _pairs(batches: Iterable[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
    if hasattr(batches, "shape"):
        raise TypeError("retrain_free: batches is one array; [(inputs, targets), ...] would work")
    pairs = list(batches)
    for number, pair in enumerate(pairs):
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise TypeError(
                f"retrain_free: batch {number} is no pair but {type(pair).__name__}; (inputs, "
                "targets), inputs an array or a tuple of arrays, would work"
            )
    if not pairs:
        raise ValueError("retrain_free: no batches; one pair (inputs, targets) would work")
    return [(inputs, targets) for inputs, targets in pairs]


def _budget(counted, groups, flops, seconds, latency) -> Budget:
    if (flops is None) == (seconds is None) or (seconds is None) != (latency is None):
        raise ValueError(
            f"retrain_free: flops={flops}, seconds={seconds} and latency "
            f"{'not given' if latency is None else 'given'}; flops=, or seconds= with latency=, "
            "would work"
        )
    if flops is not None:
        return FlopsBudget(counted, groups, flops)
    return LatencyBudget(groups, latency, seconds)


def _chosen(groups: Sequence[StructuredGroup], pattern: str) -> list[StructuredGroup]:
    names = [group.name for group in groups]
    try:
        chosen = [group for group in groups if re.fullmatch(pattern, group.name)]
    except re.error as error:
        raise ValueError(f"retrain_free: groups={pattern!r}: {error}") from error
    if not chosen:
        raise ValueError(
            f"retrain_free: groups={pattern!r} matches none of {names[:8]}"
            if names
            else "retrain_free: the model has no heads and no neurons that weights alone read; "
            "js.graph.channels tells what holds its channels"
        )
    return chosen


def _check_names(what: str, names: Sequence[str], groups: Sequence[StructuredGroup]) -> None:
    known = {group.name for group in groups}
    if isinstance(names, str):
        raise TypeError(f"retrain_free: {what}={names!r} is no list; [{names!r}] would work")
    for name in names:
        if name not in known:
            raise ValueError(
                f"retrain_free: {what}: {name!r} is no group; {near_misses(name, known)}"
            )
