"""`channels`: which axes of which weights are the same channels."""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from jaxsparse.graph.analysis.pieces import Cause, Factor, Piece
from jaxsparse.graph.analysis.trace import Analysis
from jaxsparse.graph.analysis.values import Op
from jaxsparse.graph.hosts import gathered, placed_as
from jaxsparse.trees import Tree, leaves_by_path, near_misses, replace_by_path


@dataclasses.dataclass(frozen=True)
class Place:
    """Where the channels of a group lie on an axis of a leaf.

    Attributes:
      path: slash path of the leaf.
      axis: of the leaf.
      axis_size: size of that axis.
      offset: position of channel 0.
      size: how many channels.
      stride: distance of two neighbouring channels on the axis.
      repeats: how often they occur in the piece: with the other factors of a
        product axis.
    """

    path: str
    axis: int
    axis_size: int
    offset: int
    size: int
    stride: int
    repeats: int

    def __str__(self) -> str:
        place = f"{self.path}[{self.axis}]"
        if self.size == self.axis_size:
            return place
        details = [f"{self.size} of {self.axis_size}"]
        if self.offset:
            details.append(f"from {self.offset}")
        if self.stride != 1:
            details.append(f"stride {self.stride}")
        if self.repeats != 1:
            details.append(f"{self.repeats} times")
        return f"{place} ({', '.join(details)})"


@dataclasses.dataclass(frozen=True)
class Group:
    """Channels which may change places, or go, if they do so everywhere at once.

    Attributes:
      id: its number.
      size: how many channels.
      places: all leaf axes which hold them.
      uses: those which a product or a convolution sums over, the input axes that
        n:m sparsity groups along.
    """

    id: int
    size: int
    places: tuple[Place, ...]
    uses: tuple[Place, ...]

    def __str__(self) -> str:
        used = f"; summed over in {', '.join(map(str, self.uses))}" if self.uses else ""
        return f"group {self.id}: {self.size} channels in {', '.join(map(str, self.places))}{used}"


@dataclasses.dataclass(frozen=True)
class Pinned:
    """Channels which stay where they are.

    Attributes:
      size: how many.
      places: the leaf axes which hold them.
      cause: the primitive and what it does to them.
    """

    size: int
    places: tuple[Place, ...]
    cause: Cause

    def __str__(self) -> str:
        where = ", ".join(map(str, self.places))
        return f"pinned: {self.size} channels in {where}: {self.cause}"


@dataclasses.dataclass(frozen=True)
class Channels:
    """Which axes of which leaves are the same channels; `str(...)` is a table.

    Attributes:
      groups: what may be permuted or removed, each by its own `id`.
      pinned: what may not, and why.
      axes: by path, for every axis of the leaf, the pieces that it consists of.
      shapes: by path.
      ops: the model as a graph, for the picture.
      removal: whether the groups are those which may go (of `shrink`), not all of which
        may change places.
    """

    groups: tuple[Group, ...]
    pinned: tuple[Pinned, ...]
    axes: Mapping[str, tuple[tuple[Piece, ...], ...]]
    shapes: Mapping[str, tuple[int, ...]]
    ops: tuple[Op, ...]
    removal: bool = False

    def __str__(self) -> str:
        return "\n".join(map(str, (*self.groups, *self.pinned)))

    def index(
        self, path: str, axis: int, permutations: Mapping[int, Int[np.ndarray, " n"]]
    ) -> Int[np.ndarray, " size"]:
        """Where every position of a leaf's axis is taken from.

        Args:
          path: slash path of the leaf.
          axis: of the leaf.
          permutations: by group id; channel i is taken from permutation[i].
        """
        index = np.arange(self.shapes[path][axis])
        for piece in self.axes[path][axis]:
            order = [
                np.arange(factor.size)
                if factor.group is None or factor.group not in permutations
                else np.asarray(permutations[factor.group])
                for factor in piece.factors
            ]
            index[piece.grid().ravel()] = piece.at(order).ravel()
        return index

    def permuted(self, params: Tree, permutations: Mapping[int, Int[np.ndarray, " n"]]) -> Tree:
        """Permutes the channels of groups, in every leaf that holds them.

        Args:
          params: the parameters that were analysed.
          permutations: by group id; channel i is taken from permutation[i]. Groups
            that are not named stay as they are.

        Returns:
          Parameters of the same function.

        Raises:
          ValueError: an id that no group has, something else than a permutation, or
            channels that were looked for to be removed.
        """
        if self.removal:
            raise ValueError(
                "these groups may go, but not all may change places; those of "
                "channels(fn, params, *inputs) may"
            )
        permutations = {id: np.asarray(order) for id, order in permutations.items()}
        for id, order in permutations.items():
            if not 0 <= id < len(self.groups):
                raise ValueError(f"no group {id}; there are {len(self.groups)}, from 0 on")
            size = self.groups[id].size
            if order.shape != (size,) or not np.array_equal(np.sort(order), np.arange(size)):
                raise ValueError(
                    f"group {id} has {size} channels: a permutation of 0 to {size - 1} would "
                    f"work, not {order!r}"
                )
        leaves, new = leaves_by_path(params), {}
        for path, axes in self.axes.items():
            leaf = gathered(leaves[path])
            for axis, pieces in enumerate(axes):
                if any(f.group in permutations for piece in pieces for f in piece.factors):
                    leaf = jnp.take(leaf, self.index(path, axis, permutations), axis=axis)
                    new[path] = placed_as(leaf, leaves[path])
        return replace_by_path(params, new)

    def group_of(self, path: str, axis: int) -> Group | None:
        """The group whose channels a leaf's axis is, or None if it has several or none.

        Raises:
          KeyError: for a path that is not there; near misses are listed.
        """
        if path not in self.axes:
            raise KeyError(f"no leaf {path!r}; {near_misses(path, self.axes)}")
        pieces = self.axes[path][axis]
        if len(pieces) != 1 or len(pieces[0].factors) != 1:
            return None
        group = pieces[0].factors[0].group
        return None if group is None else self.groups[group]


def channels(
    fn: Callable[..., Any],
    params: Tree,
    *inputs: Any,
    blocks: Mapping[str, tuple[int, int]] | None = None,
) -> Channels:
    """Finds which axes of which weights are the same channels, from the traced model.

    Nothing runs: the function is traced on the shapes of its arguments. Every axis
    of every array in the program is an atom, a product (reshape) or a sum
    (concatenation) of atoms; each primitive unifies the atoms that are the same
    channels. What a primitive needs in its order, what the function takes and
    returns, and whatever is not understood, is pinned.

    Args:
      fn: called as fn(params, *inputs); a linen `apply` in evaluation mode, or a
        function that merges an `nnx` state. What is not an array is best closed
        over.
      params: any tree of arrays or `jax.ShapeDtypeStruct`: parameters and other
        collections such as batch statistics.
      inputs: arrays or shapes.
      blocks: channels that go together, where the trace does not show it: by regular
        expression of a path (axis, size), such as `{r".*/query/kernel": (1, 64)}` for
        heads of 64; every `size` neighbours on that axis are one channel.

    Returns:
      The groups of channels that may be permuted or removed together, and what is
      pinned, with the reason.

    Raises:
      ValueError: for blocks that no leaf has.

    Example:
      >>> import jax.numpy as jnp
      >>> def mlp(params, x):
      ...     return jnp.tanh(x @ params["up"] + params["bias"]) @ params["down"]
      >>> params = {"up": jnp.ones((2, 8)), "bias": jnp.ones(8), "down": jnp.ones((8, 3))}
      >>> print(channels(mlp, params, jnp.ones((5, 2))))
      group 0: 8 channels in bias[0], down[0], up[1]; summed over in down[0]
      pinned: 3 channels in down[1]: is an output of the function
      pinned: 2 channels in up[0]: is an input of the function

    References:
      Pool and Yu, Channel Permutations for N:M Sparsity, NeurIPS 2021.
    """
    return summarize(Analysis(fn, params, inputs, blocks))


def summarize(analysis: Analysis) -> Channels:
    """The result of an analysis: terms become groups and places."""
    terms = analysis.terms
    numbers: dict[int, int] = {}
    places: dict[int, list[Place]] = {}
    causes: dict[int, Cause] = {}

    def public(piece):
        factors = (dataclasses.replace(f, group=numbers.get(f.atom)) for f in piece.factors)
        return Piece(piece.offset, tuple(factors))

    def groups(axes):
        found = (numbers[f.atom] for f in terms.factors(axes) if f.atom in numbers)
        return tuple(dict.fromkeys(found))

    axes = {}
    for path, value in analysis.leaves.items():
        axes[path] = ()
        for axis, term in enumerate(value.axes):
            pieces = terms.pieces(term)
            for place, factor in _places(path, axis, terms.size(term), pieces):
                places.setdefault(factor.atom, []).append(place)
                if factor.cause is None:
                    numbers.setdefault(factor.atom, len(numbers))
                else:
                    causes[factor.atom] = factor.cause
            axes[path] += (tuple(map(public, pieces)),)
    met = (product for products in analysis.products.values() for product in products)
    used = {(product.path, axis) for product in met for axis in product.in_axis}
    free = tuple(
        Group(
            id,
            terms.size(atom),
            tuple(places[atom]),
            tuple(p for p in places[atom] if (p.path, p.axis) in used),
        )
        for atom, id in numbers.items()
    )
    pinned = tuple(
        Pinned(terms.size(atom), tuple(places[atom]), cause) for atom, cause in causes.items()
    )
    ops = tuple(
        dataclasses.replace(op, groups_in=groups(op.groups_in), groups_out=groups(op.groups_out))
        for op in analysis.ops
    )
    shapes = MappingProxyType(dict(analysis.shapes))
    return Channels(free, pinned, MappingProxyType(axes), shapes, ops, analysis.removal)


def _places(path: str, axis: int, size: int, pieces: list[Piece]) -> Iterator[tuple[Place, Factor]]:
    for piece in pieces:
        for f in piece.factors:
            repeats = math.prod(other.size for other in piece.factors if other is not f)
            yield Place(path, axis, size, piece.offset, f.size, f.stride, repeats), f
