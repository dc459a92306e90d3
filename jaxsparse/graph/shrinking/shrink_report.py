"""What `shrink` removed, what it did not and why, and what would let it go."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from jaxsparse.graph.analysis.channels import Channels, Group, Pinned
from jaxsparse.graph.analysis.pieces import others, outer
from jaxsparse.graph.shrinking.choice import Choice

# Of a longer list the report shows no more.
SHOWN = 4
# The numbers of no more channels than these are written out.
NAMED = 32

Indices = Int[np.ndarray, "_"]


@dataclasses.dataclass(frozen=True)
class Stay:
    """Channels that a mask leaves empty somewhere, but which the model needs.

    Attributes:
      channels: which ones.
      reasons: what reads them, one for every place.
      holders: paths of the leaves that are not zero there.
      cures: leaves of which one alone, masked there as well, would let them go; each a
        tuple of paths that have to be masked together.
    """

    channels: Indices
    reasons: tuple[str, ...]
    holders: tuple[str, ...]
    cures: tuple[tuple[str, ...], ...]

    def __str__(self) -> str:
        text = f"{len(self.channels)} stay: {_listed(self.reasons, '; ')}"
        if self.holders:
            text += f". Not zero there: {_listed(self.holders, ', ')}"
        if self.cures:
            choices = " or in ".join(_listed(paths, " and ") for paths in self.cures)
            text += f". They would go if masked in {choices}, too"
        return text


@dataclasses.dataclass(frozen=True)
class ShrunkGroup:
    """What became of one group of channels that masks touch.

    Attributes:
      group: which channels, and where they were.
      kept: the channels that are left.
      inexact: those removed that did add something; only under "intersection".
      folded: by path of the leaf that took over their constant, channels removed.
      stays: those that a mask leaves empty and that are left.
    """

    group: Group
    kept: Indices
    inexact: Indices
    folded: Mapping[str, Indices] = dataclasses.field(default_factory=dict)
    stays: tuple[Stay, ...] = ()

    def __str__(self) -> str:
        wrong = f", {len(self.inexact)} of the removed did add something" * bool(len(self.inexact))
        where = ", ".join(map(str, self.group.places))
        # Channels of many positions each, such as heads, are few: they are told by number.
        few = self.group.size - len(self.kept) > 0 and self.group.size <= NAMED
        named = few and any(place.repeats > 1 for place in self.group.places)
        kept = f"{len(self.kept)} channels" + f" {self.kept.tolist()}" * named
        lines = [f"{self.group.size} -> {kept}{wrong}: {where}"]
        for path, channels in self.folded.items():
            lines.append(f"  {len(channels)} removed were constant: {path} took that over")
        return "\n".join([*lines, *(f"  {stay}" for stay in self.stays)])


@dataclasses.dataclass(frozen=True)
class PinnedChannels:
    """Channels that a mask leaves empty, but which may not go.

    Attributes:
      pinned: where they are, and the cause.
      channels: which ones.
    """

    pinned: Pinned
    channels: Indices

    def __str__(self) -> str:
        return f"{len(self.channels)} masked channels stay; {self.pinned}"


@dataclasses.dataclass(frozen=True)
class Crossing:
    """Positions that a mask leaves empty where channels of several groups meet, and which stay.

    With grouped queries a query head is one of its key head and of its place there: it goes
    with all of the one or with all of the other, never alone.

    Attributes:
      path, axis: of the leaf.
      groups: whose channels meet, major to minor.
      channels: one row for every empty one, its channel in each of the groups.
    """

    path: str
    axis: int
    groups: tuple[Group, ...]
    channels: Int[np.ndarray, "_ _"]

    def __str__(self) -> str:
        ids = " and ".join(f"{group.id} ({group.size} channels)" for group in self.groups)
        some = _listed([str(tuple(map(int, row))) for row in self.channels], ", ")
        return (
            f"{self.path}[{self.axis}] is empty where channels {some} of groups {ids} meet: these "
            "stay, one alone cannot go; all that share a channel with it would have to be masked"
        )


@dataclasses.dataclass(frozen=True)
class ShrinkReport:
    """What `shrink` removed, and what not; `str(report)` is a table.

    Attributes:
      groups: the groups of which masks leave channels empty, with what became of them.
      pinned: channels that masks leave empty, but which may not go.
      kept: by path, for every axis of the leaf the positions that are left.
      masks: by path, the masks of the smaller leaves.
      before, after: numbers in the parameters.
      channels: the analysis of the model as it was, with what may be removed.
      crossings: what is empty at the crossing of groups only, single query heads of a key
        head, and stays.
    """

    groups: tuple[ShrunkGroup, ...]
    pinned: tuple[PinnedChannels, ...]
    kept: Mapping[str, tuple[Indices, ...]]
    masks: dict[str, Any]
    before: int
    after: int
    channels: Channels
    crossings: tuple[Crossing, ...] = ()

    def __str__(self) -> str:
        share = self.after / self.before if self.before else 1.0
        total = f"{self.before} -> {self.after} parameters ({share:.1%})"
        rows = (*self.groups, *self.pinned, *self.crossings)
        return "\n".join([*map(str, rows), total])


def _listed(items: Sequence[str], joint: str) -> str:
    more = len(items) - SHOWN
    return joint.join([*items[:SHOWN], *[f"{more} more"] * (more > 0)])


def report_of(choice: Choice, channels: Channels) -> ShrinkReport:
    """The report of what was decided."""
    kept = choice.positions()
    masks = {
        path: choice.kept.cut(jnp.asarray(mask), choice.analysis.leaves[path])
        for path, mask in choice.masks.items()
    }
    pinned = tuple(
        PinnedChannels(where, np.flatnonzero(choice.asked[atom]))
        for atom, where in zip(choice.pinned, channels.pinned, strict=True)
        if choice.asked[atom].any()
    )
    before = sum(leaf.size for leaf in choice.leaves.values())
    after = sum(int(np.prod([len(a) for a in axes], dtype=int)) for axes in kept.values())
    return ShrinkReport(
        *(_groups(choice, channels), pinned, kept, masks, before, after, channels),
        tuple(_crossings(choice, channels)),
    )


def _crossings(choice: Choice, channels: Channels) -> Iterator[Crossing]:
    groups = dict(zip(choice.free, channels.groups, strict=True))
    terms = choice.analysis.terms
    for path, mask in choice.masks.items():
        for axis, term in enumerate(choice.analysis.leaves[path].axes):
            alive = np.asarray(mask.any(axis=others(axis, mask.ndim)))
            for piece in terms.pieces(term):
                # What is empty along the minor factor is a row of a head, not a head.
                meeting = [i for i, f in enumerate(piece.factors[:-1]) if f.atom in groups]
                if len(meeting) < 2:
                    continue
                grid = alive[piece.grid()]
                rest = tuple(i for i in range(grid.ndim) if i not in meeting)
                atoms = [piece.factors[i].atom for i in meeting]
                empty = ~grid.any(axis=rest) & outer([choice.left[atom] for atom in atoms])
                if empty.any():
                    met = tuple(groups[atom] for atom in atoms)
                    yield Crossing(path, axis, met, np.argwhere(empty))


def _groups(choice: Choice, channels: Channels) -> tuple[ShrunkGroup, ...]:
    groups = dict(zip(choice.free, channels.groups, strict=True))
    holders = {atom: _holders(choice, atom, group) for atom, group in groups.items()}
    writers = {
        atom: [path for path in holders[atom] if path not in {p.path for p in group.uses}]
        for atom, group in groups.items()
    }
    gone: dict[str, dict[int, Any]] = {}
    for atom, paths in writers.items():
        for path in paths:
            gone.setdefault(path, {})[atom] = choice.stays(atom)
    needed = choice.needed_without(gone) if gone else {}
    rows = []
    for atom, group in groups.items():
        if not choice.asked[atom].any():
            continue
        stuck = [
            _stay(choice, atom, group, texts, chosen, holders[atom], writers[atom], needed)
            for texts, chosen in _by_reason(choice, atom).items()
        ]
        folded = {p: np.flatnonzero(c) for p, c in choice.folded.get(atom, {}).items()}
        left, lost = np.flatnonzero(choice.left[atom]), np.flatnonzero(choice.inexact[atom])
        rows.append(ShrunkGroup(group, left, lost, folded, tuple(stuck)))
    return tuple(rows)


def _holders(choice, atom, group):
    """By path the channels which stay and of which the leaf holds something."""
    stays = choice.stays(atom)
    if not stays.any():
        return {}
    paths = dict.fromkeys(place.path for place in group.places)
    found = {path: choice.used(path, atom) & stays for path in paths}
    return {path: used for path, used in found.items() if used.any()}


def _by_reason(choice, atom):
    """The channels that stay by the reasons for which they do."""
    stays, found = choice.stays(atom), {}
    reasons = choice.needs.reasons.get(atom, [])
    for channel in np.flatnonzero(stays):
        here = tuple(dict.fromkeys(r for r in reasons if r.channels[channel]))
        found.setdefault(here, []).append(channel)
    return {here: np.array(channels) for here, channels in found.items()}


def _stay(choice, atom, group, reasons, chosen, holders, writers, needed):
    if not reasons:
        return Stay(chosen, ("one channel of a group always stays",), (), ())
    cures = []
    readers = {place.path for place in group.uses}
    paths = [path for reason in reasons for path in reason.weights]
    if all(set(reason.weights) & readers for reason in reasons):
        cures.append(tuple(dict.fromkeys(path for path in paths if path in readers)))
    holding = {path: used[chosen].any() for path, used in holders.items()}
    feeding = tuple(path for path in writers if holding[path])
    if feeding and not needed[atom][chosen].any():
        cures.append(feeding)
    texts = tuple(dict.fromkeys(reason.text for reason in reasons))
    return Stay(chosen, texts, tuple(p for p, some in holding.items() if some), tuple(cures))
