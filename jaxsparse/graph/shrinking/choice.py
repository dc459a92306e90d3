"""Which channels go: those in question are struck out until all that are left are needed."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool

from jaxsparse.graph.analysis.pieces import others, outer
from jaxsparse.graph.analysis.trace import Analysis, arrays_by_path
from jaxsparse.graph.hosts import whole
from jaxsparse.graph.shrinking.folding import Meeting, Product
from jaxsparse.graph.shrinking.needs import Needs, needed
from jaxsparse.graph.shrinking.rewrite import Kept
from jaxsparse.trees import Tree

Resolve = Literal["union", "intersection"]
Vector = Bool[np.ndarray, "_"]


class Choice:
    """What becomes of the channels of a program.

    Attributes:
      analysis: of the program.
      masks: by path; True also where a masked entry takes over a constant.
      leaves: by path, zero where they are masked or a channel went; with the constants
        that they took over.
      free: by atom in question how many channels, in the order of `Channels.groups`.
      pinned: atoms that are not in question, in the order of `Channels.pinned`.
      left: by atom True for the channels that are left.
      kept: the same, for every axis of the program.
      asked: by atom True for the channels which the mask of some leaf leaves empty.
      inexact: by atom True for those that went and added something.
      folded: by atom and path, True for those whose constant that leaf took over.
      needs: why what is left is needed.
    """

    def __init__(self, analysis: Analysis, masked: Tree, masks: Mapping[str, Any]):
        self.analysis = analysis
        self.leaves = {path: _numbers(leaf) for path, leaf in arrays_by_path(masked).items()}
        self.masks = {path: np.array(mask, bool) for path, mask in masks.items()}
        terms = analysis.terms
        axes = (term for value in analysis.leaves.values() for term in value.axes)
        found = {factor.atom: factor for factor in terms.factors(axes)}
        atoms = {atom: factor.size for atom, factor in found.items()}
        self.free = {atom: n for atom, n in atoms.items() if found[atom].cause is None}
        self.pinned = {atom: n for atom, n in atoms.items() if atom not in self.free}
        self.left = {atom: np.ones(size, bool) for atom, size in self.free.items()}
        self.kept = Kept(terms, self.left)
        self.asked = {atom: np.zeros(size, bool) for atom, size in atoms.items()}
        self.inexact = {atom: np.zeros(size, bool) for atom, size in self.free.items()}
        self.folded: dict[int, dict[str, Vector]] = {}
        self.needs = Needs({}, {}, [])

    def resolve(self, resolve: Resolve) -> None:
        """Decides."""
        if resolve == "intersection":
            self._ask()
            needs, before = self._needed(), self.left
            self._strike({atom: self.asked[atom] for atom in self.free}, needs)
            for atom, used in needs.channels.items():
                self.inexact[atom] = before[atom] & ~self.left[atom] & used
        while True:
            self._ask()
            self.needs = self._needed()
            idle = {atom: self.asked[atom] & ~self.needs.channels[atom] for atom in self.free}
            if not self._strike(idle, self.needs):
                return

    def positions(self) -> Mapping[str, tuple[np.ndarray, ...]]:
        """By path, for every axis the positions that are left."""
        return MappingProxyType(
            {
                path: tuple(np.flatnonzero(self.kept.vector(term)) for term in value.axes)
                for path, value in self.analysis.leaves.items()
            }
        )

    def stays(self, atom: int) -> Vector:
        """Channels that a mask leaves empty and that are needed nevertheless."""
        return self.asked[atom] & self.left[atom] if atom in self.left else self.asked[atom]

    def used(self, path: str, atom: int) -> Vector:
        """Channels of which a leaf holds anything but zeros."""
        leaf, found = self.leaves[path], np.zeros(self.left[atom].size, bool)
        for axis, term in enumerate(self.analysis.leaves[path].axes):
            positions = np.asarray((leaf != 0).any(axis=others(axis, leaf.ndim)))
            for other, channels in self.analysis.terms.channels(term, positions):
                if other == atom:
                    found |= channels
        return found

    def needed_without(self, gone: Mapping[str, Mapping[int, Vector]]) -> dict[int, Vector]:
        """What would be needed if some leaves were masked in some channels, too."""
        leaves = dict(self.leaves)
        for path, by_atom in gone.items():
            rest = Kept(self.analysis.terms, {atom: ~chosen for atom, chosen in by_atom.items()})
            leaves[path] = self._cleared(leaves[path], path, rest)
        return needed(self.analysis, leaves, self.free).channels

    def _strike(self, wanted: Mapping[int, Vector], needs: Needs) -> bool:
        """Removes channels; whether there was one to remove."""
        before, self.left = self.left, dict(self.left)
        for atom, left in before.items():
            gone = wanted[atom]
            if left.any() and not (left & ~gone).any():
                # The last channel stays.
                gone = gone & (np.arange(left.size) != np.flatnonzero(left)[0])
            self.left[atom] = left & ~gone
        old, self.kept = self.kept, Kept(self.analysis.terms, self.left)
        changed = any((before[atom] != self.left[atom]).any() for atom in self.left)
        if changed:
            for product, meeting in needs.folds:
                self._fold(product, meeting, old)
            for path, leaf in self.leaves.items():
                self.leaves[path] = self._cleared(leaf, path, self.kept)
        return changed

    def _fold(self, product: Product, meeting: Meeting, old: Kept) -> None:
        """Gives a leaf what the channels that went add as constants."""
        gone = {
            axis: old.vector(term) & ~self.kept.vector(term)
            for axis, term in product.summed.items()
        }
        steady = {term: np.zeros(self.analysis.terms.size(term), bool) for term, _ in product.owed}
        for term, adds in product.owed:
            steady[term] |= adds & old.vector(term) & ~self.kept.vector(term)
        if not any(chosen.any() for chosen in steady.values()):
            return
        path, added = meeting.path, product.added(gone)
        leaf = self.leaves[path]
        axes = (*meeting.axes, *[None] * (leaf.ndim - len(meeting.axes)))
        named = [axis for axis in axes if axis is not None]
        rest = [axis for axis in range(added.ndim) if axis not in named]
        delta = added.transpose(*named, *rest).reshape([added.shape[axis] for axis in named])
        delta = np.expand_dims(delta, [i for i, axis in enumerate(axes) if axis is None])
        self.leaves[path] = (leaf + meeting.sign * delta).astype(leaf.dtype)
        if path in self.masks:
            self.masks[path] |= delta != 0
        for term, chosen in steady.items():
            for atom, channels in self.analysis.terms.channels(term, chosen):
                if atom in self.free and channels.any():
                    into = self.folded.setdefault(atom, {})
                    into[path] = into.get(path, np.zeros(channels.size, bool)) | channels

    def _needed(self) -> Needs:
        return needed(self.analysis, self.leaves, self.free)

    def _ask(self) -> None:
        """Puts in question the channels of which the mask of some leaf keeps nothing."""
        for path, mask in self.masks.items():
            if not mask.size:
                continue  # the mask of a leaf without entries does not ask for anything
            axes = self.analysis.leaves[path].axes
            alive = mask & outer([self.kept.vector(term) for term in axes])
            for axis, term in enumerate(axes):
                used = np.asarray(alive.any(axis=others(axis, alive.ndim)))
                for atom, some in self.analysis.terms.channels(term, used):
                    self.asked[atom] |= ~some

    def _cleared(self, leaf: Any, path: str, kept: Kept) -> Any:
        """The leaf with zeros where channels are not left."""
        lefts = [kept.vector(term) for term in self.analysis.leaves[path].axes]
        if all(left.all() for left in lefts):
            return leaf
        return np.where(outer(lefts), leaf, np.zeros((), leaf.dtype))


def _numbers(leaf: Any) -> Any:
    """A leaf on this host; keys of random numbers stay as they are."""
    if jnp.issubdtype(getattr(leaf, "dtype", float), jax.dtypes.extended):
        return leaf
    return whole(leaf)
