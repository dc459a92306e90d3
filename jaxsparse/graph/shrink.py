"""`shrink`: what masks leave empty is removed, and the model is really smaller."""

import dataclasses
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Int

from jaxsparse.graph.axes import along, others
from jaxsparse.graph.channels import Channels, Group, summarize
from jaxsparse.graph.needs import needed
from jaxsparse.graph.rewrite import Kept, run
from jaxsparse.graph.trace import Analysis
from jaxsparse.graph.zeros import Zeros
from jaxsparse.masking import mask_params
from jaxsparse.trees import Tree, leaves_by_path, near_misses, replace_by_path

Resolve = Literal["union", "intersection"]


@dataclasses.dataclass(frozen=True)
class ShrunkGroup:
    """What became of one group of channels.

    Attributes:
      group: which channels, and where they were.
      kept: the channels that are left.
      inexact: those removed that did add something; only under "intersection".
    """

    group: Group
    kept: Int[np.ndarray, " kept"]
    inexact: Int[np.ndarray, " inexact"]

    def __str__(self) -> str:
        wrong = f", {len(self.inexact)} of the removed did add something" * bool(len(self.inexact))
        where = ", ".join(map(str, self.group.places))
        return f"{self.group.size} -> {len(self.kept)} channels{wrong}: {where}"


@dataclasses.dataclass(frozen=True)
class ShrinkReport:
    """What `shrink` removed; `str(report)` is a table.

    Attributes:
      groups: the groups that lost channels.
      kept: by path, for every axis of the leaf the positions that are left.
      masks: by path, the masks of the smaller leaves.
      before, after: numbers in the parameters.
      channels: the analysis of the model as it was.
    """

    groups: tuple[ShrunkGroup, ...]
    kept: Mapping[str, tuple[Int[np.ndarray, " kept"], ...]]
    masks: dict[str, Any]
    before: int
    after: int
    channels: Channels

    def __str__(self) -> str:
        share = self.after / self.before if self.before else 1.0
        total = f"{self.before} -> {self.after} parameters ({share:.1%})"
        return "\n".join([*map(str, self.groups), total])


def shrink(
    fn: Callable[..., Any],
    params: Tree,
    masks: Tree,
    *inputs: Any,
    resolve: Resolve = "union",
    blocks: Mapping[str, tuple[int, int]] | None = None,
) -> tuple[Tree, Callable[..., Any], ShrinkReport]:
    """Removes the channels, neurons and heads that masks leave empty, with all tied to them.

    A channel is in question if the mask of some leaf keeps no entry of it.

    - `resolve="union"` keeps the union of what the leaves need: a channel goes if it
      surely adds nothing wherever its axis is summed over, because one factor is zero
      there. Where only products sum over it, that is so if the masks leave it empty in
      all its leaves; or in all consumers; or in its producers, while its bias is zero
      and the function between maps 0 to 0. What the smaller model computes is what the
      masked one does, up to the order of sums. A channel that is empty in its producers
      only and carries a bias on is kept, and so is one in a softmax or a maximum.
    - `resolve="intersection"` keeps a channel if the mask of every leaf keeps some of
      it, so one empty leaf is enough to remove it. What it still added (a bias through
      an activation, a consumer's row) is lost: the function changes by that, and the
      report counts these channels.

    Zeros are followed through the program, with infinities and NaN left out of account.
    Removing one channel may empty others: it is repeated until nothing is left to
    remove. One channel of a group always stays. Counts that the model divides by (a
    mean over channels) stay those of the whole model, as in the masked one.

    Args:
      fn, params, inputs: the model, as in `channels`; params are arrays.
      masks: by path or as a tree like params, True is kept.
      resolve: "union" or "intersection".
      blocks: channels that go together, as in `channels`: a head that the trace does
        not show is declared here, and goes as a whole or not at all.

    Returns:
      - the masked parameters without what was removed, a tree as before;
      - a function of (smaller params, *inputs) that runs the same program on them. It
        is traced anew for inputs of other shapes, and can be jitted, differentiated
        and exported;
      - a report.

    Raises:
      ValueError: for another `resolve`, and masks of other shapes.
      KeyError: for masks of leaves that are not there.

    Example:
      >>> def mlp(params, x):
      ...     return jnp.tanh(x @ params["up"]) @ params["down"]
      >>> params = {"up": jnp.ones((2, 8)), "down": jnp.ones((8, 3))}
      >>> masks = {"up": jnp.arange(8) < jnp.full((2, 1), 5)}
      >>> small, fn, report = shrink(mlp, params, masks, jnp.ones((4, 2)))
      >>> small["up"].shape, small["down"].shape, fn(small, jnp.ones((4, 2))).shape
      ((2, 5), (5, 3), (4, 3))

    References:
      Lagunas et al. 2021, arXiv 2109.04838 (intersection).
    """
    if resolve not in ("union", "intersection"):
        raise ValueError(f"resolve={resolve!r} is neither 'union' nor 'intersection'")
    masked = mask_params(params, masks)
    analysis = Analysis(fn, params, inputs, blocks)
    choice = _Choice(analysis, masked, leaves_by_path(masks))
    inexact = choice.resolve(resolve)
    kept = choice.positions()
    report = choice.report(summarize(analysis), kept, inexact)
    small = {
        path: choice.kept.cut(leaf, analysis.leaves[path])
        for path, leaf in leaves_by_path(masked).items()
    }
    shapes = jax.eval_shape(lambda tree: tree, params)
    first = _signature(inputs)

    def shrunk(params: Tree, *inputs: Any) -> Any:
        """Runs the smaller model."""
        known = _signature(inputs) == first
        program = analysis if known else Analysis(fn, shapes, _shapes(inputs), blocks)
        left = choice.kept if known else _kept_of(program, kept)
        leaves = leaves_by_path(params)
        _check(leaves, kept)
        operands = [*leaves.values(), *jax.tree.leaves(inputs)]
        return jax.tree.unflatten(program.output_tree, run(program, left, operands))

    return replace_by_path(params, small), shrunk, report


class _Choice:
    """Channels are struck out until those that are left are needed."""

    def __init__(self, analysis: Analysis, masked: Tree, masks: Mapping[str, Any]):
        self.analysis = analysis
        self.leaves = {path: np.asarray(leaf) for path, leaf in leaves_by_path(masked).items()}
        self.masks = {path: np.asarray(mask, bool) for path, mask in masks.items()}
        terms = analysis.terms
        atoms: dict[int, int] = {}
        for value in analysis.leaves.values():
            for term in value.axes:
                for piece in terms.pieces(term):
                    atoms |= {a: n for a, n, _ in piece.factors if terms.cause(a) is None}
        self.free = atoms
        self.left = {atom: np.ones(size, bool) for atom, size in atoms.items()}
        self.kept = Kept(terms, self.left)

    def resolve(self, resolve: Resolve) -> dict[int, np.ndarray]:
        """Decides; returns by atom the channels removed that were needed."""
        inexact = {}
        if resolve == "intersection":
            empty, used = self._empty(), self._needed()
            for atom in self.free:
                gone = self._remove(atom, empty[atom])
                if (gone & used[atom]).any():
                    inexact[atom] = np.flatnonzero(gone & used[atom])
            self.kept = Kept(self.analysis.terms, self.left)
        while True:
            empty, used = self._empty(), self._needed()
            removed = [self._remove(atom, empty[atom] & ~used[atom]) for atom in self.free]
            if not any(gone.any() for gone in removed):
                return inexact
            self.kept = Kept(self.analysis.terms, self.left)

    def _remove(self, atom: int, gone: np.ndarray) -> np.ndarray:
        left = self.left[atom]
        gone = gone & left
        if not (left & ~gone).any():
            # The last channel stays.
            gone = gone & (np.arange(left.size) != np.flatnonzero(left)[0])
        self.left[atom] = left & ~gone
        return gone

    def _needed(self) -> dict[int, np.ndarray]:
        zeros = {}
        for path, leaf in self.leaves.items():
            lefts = [self.kept.vector(term) for term in self.analysis.leaves[path].axes]
            if not np.issubdtype(leaf.dtype, np.number) and leaf.dtype != bool:
                zeros[path] = Zeros.array(leaf)
                continue
            alive = _outer(lefts) & (leaf != 0) if lefts else leaf != 0
            found = Zeros.array(alive)
            # Only that all are zero is known from what is alive; the number is the leaf's.
            value = leaf[()] if not lefts else (0 if found.value == 0 else None)
            zeros[path] = Zeros(found.axes, value)
        return needed(self.analysis, zeros, self.free)

    def _empty(self) -> dict[int, np.ndarray]:
        """By atom the channels of which the mask of some leaf keeps nothing."""
        empty = {atom: np.zeros(size, bool) for atom, size in self.free.items()}
        for path, mask in self.masks.items():
            axes = self.analysis.leaves[path].axes
            alive = mask & _outer([self.kept.vector(term) for term in axes])
            for axis, term in enumerate(axes):
                used = np.asarray(alive.any(axis=others(axis, alive.ndim)))
                for piece in self.analysis.terms.pieces(term):
                    grid = piece.grid()
                    for i, (atom, _, _) in enumerate(piece.factors):
                        if atom in empty:
                            empty[atom] |= ~used[grid].any(axis=others(i, grid.ndim))
        return empty

    def positions(self) -> Mapping[str, tuple[np.ndarray, ...]]:
        """By path, for every axis the positions that are left."""
        return MappingProxyType(
            {
                path: tuple(np.flatnonzero(self.kept.vector(term)) for term in value.axes)
                for path, value in self.analysis.leaves.items()
            }
        )

    def report(self, channels: Channels, kept, inexact) -> ShrinkReport:
        rows = []
        for atom, group in self._groups(channels).items():
            left = self.left[atom]
            if not left.all():
                lost = inexact.get(atom, np.zeros(0, int))
                rows.append(ShrunkGroup(group, np.flatnonzero(left), lost))
        masks = {
            path: self.kept.cut(jnp.asarray(mask), self.analysis.leaves[path])
            for path, mask in self.masks.items()
        }
        before = sum(leaf.size for leaf in self.leaves.values())
        after = sum(int(np.prod([len(a) for a in axes], dtype=int)) for axes in kept.values())
        return ShrinkReport(tuple(rows), kept, masks, before, after, channels)

    def _groups(self, channels: Channels) -> dict[int, Group]:
        """Groups are numbered in the order in which their atoms appear."""
        return dict(zip(self.free, channels.groups, strict=True))


def _outer(vectors: list[Bool[np.ndarray, " size"]]) -> np.ndarray:
    grid = np.ones([len(v) for v in vectors], bool)
    for i, vector in enumerate(vectors):
        grid &= along(i, grid.ndim, vector)
    return grid


def _kept_of(analysis: Analysis, kept: Mapping[str, tuple[np.ndarray, ...]]) -> Kept:
    """The same channels in another analysis of the model, of inputs of another shape."""
    atoms: dict[int, np.ndarray] = {}
    for path, value in analysis.leaves.items():
        for term, left in zip(value.axes, kept[path], strict=True):
            vector = np.zeros(analysis.terms.size(term), bool)
            vector[left] = True
            for piece in analysis.terms.pieces(term):
                grid = piece.grid()
                for i, (atom, size, _) in enumerate(piece.factors):
                    stays = vector[grid].any(axis=others(i, grid.ndim))
                    atoms[atom] = atoms.get(atom, np.zeros(size, bool)) | stays
    found = Kept(analysis.terms, atoms)
    for path, value in analysis.leaves.items():
        for axis, (term, left) in enumerate(zip(value.axes, kept[path], strict=True)):
            if not np.array_equal(np.flatnonzero(found.vector(term)), left):
                raise ValueError(
                    f"with inputs of these shapes other channels are tied to axis {axis} of "
                    f"{path!r}; shrink(..., *inputs) with these inputs would work"
                )
    return found


def _check(leaves: Mapping[str, Any], kept: Mapping[str, tuple[np.ndarray, ...]]) -> None:
    for path, axes in kept.items():
        if path not in leaves:
            raise KeyError(f"the parameters have no leaf {path!r}; {near_misses(path, leaves)}")
        shape = tuple(map(len, axes))
        if np.shape(leaves[path]) != shape:
            raise ValueError(
                f"{path!r} has shape {np.shape(leaves[path])}; the smaller model has {shape} there"
            )


def _shapes(inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return jax.eval_shape(lambda *inputs: inputs, *inputs)


def _signature(inputs: tuple[Any, ...]):
    leaves, tree = jax.tree.flatten(_shapes(inputs))
    return tree, [(leaf.shape, leaf.dtype, leaf.weak_type) for leaf in leaves]
