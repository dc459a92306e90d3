"""`Structure`: masks become those of whole heads and neurons."""

import dataclasses
from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from jaxsparse.graph.shrinking.choice import Resolve
from jaxsparse.graph.structured.units import StructuredGroup
from jaxsparse.trees import Tree, leaves_by_path, near_misses

Masks = Mapping[str, Bool[Array, "..."]]

# The numbers of no more units than these are written out.
SHOWN = 32


@dataclasses.dataclass(frozen=True)
class KeptUnits:
    """What masks keep of one group.

    Attributes:
      group: which units there are.
      kept: numbers of those that `resolve` would keep.
      lacking: paths of weights that have no mask, so that the group is left as it is.
    """

    group: StructuredGroup
    kept: Int[np.ndarray, "_"]
    lacking: tuple[str, ...] = ()

    def __str__(self) -> str:
        name, kind, units = self.group.name, self.group.kind, self.group.units
        if self.lacking:
            return f"{name}: {units} {kind} left as they are, no mask for {', '.join(self.lacking)}"
        if units > SHOWN:
            return f"{name}: {len(self.kept)} of {units} {kind} kept"
        return f"{name}: {kind} kept {self.kept.tolist()} of {units}"


@dataclasses.dataclass(frozen=True)
class StructureReport:
    """What masks keep of heads and neurons; `str(report)` has a line for every group.

    Attributes:
      groups: those of which some weight has a mask.
    """

    groups: tuple[KeptUnits, ...]

    def __str__(self) -> str:
        return "\n".join(map(str, self.groups))


@dataclasses.dataclass(frozen=True)
class Structure:
    """The heads and neurons of a model; `str(structure)` lists them.

    Static and hashable: nothing of it is traced. `structure` finds one; groups declared by
    hand are `Structure((StructuredGroup(...),))`.

    Attributes:
      groups: no unit of which is in two of them.
      shapes: path and shape of every leaf, which masks are held against. Of groups declared
        by hand it may be empty: then no more is known than the axes that units lie on.
    """

    groups: tuple[StructuredGroup, ...]
    shapes: tuple[tuple[str, tuple[int, ...]], ...] = ()

    def resolve(
        self, masks: Tree, resolve: Resolve = "union", *, refill: bool = True
    ) -> dict[str, Bool[Array, "..."]]:
        """Masks by which heads and neurons are there as a whole, or not at all.

        A unit u of a group is kept where

            union:         any weight keeps an entry of u, or a bias that is added to the
                           product of a weight that keeps any entry at all;
            intersection:  every weight keeps an entry of u;

        and where no unit would be, the first of those that most weights keep. With
        `refill` masks of weights, and of biases and scales beside them, are 1 on kept units
        and 0 on others, and biases that follow the readers are 1: NNCF's structured
        masking. What is refilled has the value that training left there.

        Without `refill` nothing comes back: masks are ANDed with the kept units. The union then
        is that of the readers: a unit of which none of them keeps an entry adds nothing and
        goes, so the function stays that of the masked model. `shrink` can remove more than
        was dropped here: units that nothing feeds, and constants that the next bias takes over.
        Its ShrinkReport has the final count.

        Groups some of whose weights have no mask stay as they are (`report` names them), and
        so do all leaves in no group. Every number here is static but for the masks: it runs
        inside `jit`, under `vmap`, and on sharded masks with reductions alone.

        Args:
          masks: bool, by path or as a tree like the parameters; True is kept.
          resolve: "union" or "intersection".
          refill: whether kept units become dense again.

        Returns:
          `{"slash/path": bool mask}` of the same leaves.

        Raises:
          ValueError: for another `resolve`, for masks of other shapes or of floats, and if no
            group has masks for all its weights.
          KeyError: for a mask of no leaf.

        Example:
          >>> from jaxsparse.graph import Member, Structure, StructuredGroup
          >>> group = StructuredGroup("mlp", "neurons", 3, (
          ...     Member("up", 1, 3, "writes"), Member("down", 0, 3, "reads")))
          >>> masks = {"up": jnp.array([[1, 0, 0]], bool), "down": jnp.array([[0], [0], [1]], bool)}
          >>> Structure((group,)).resolve(masks)["up"].tolist()
          [[True, False, True]]
          >>> Structure((group,)).resolve(masks, refill=False)["up"].tolist()
          [[False, False, False]]

        References:
          NNCF's movement sparsity (union); Lagunas et al. 2021, arXiv 2109.04838
          (intersection).
        """
        found = self._read(masks, resolve)
        whole = [group for group in self.groups if not group.lacking(found)]
        if not whole:
            lacking = [path for group in self.groups for path in group.lacking(found)]
            near = near_misses(lacking[0], found) if lacking else "the structure has no group"
            raise ValueError(
                f"nothing to resolve: no group has masks for all its weights; lacking are "
                f"{', '.join(map(repr, lacking[:4]))}; {near}"
            )
        stays: dict[str, Array] = {}
        covered: dict[str, Array] = {}
        new = dict(found)
        for group in whole:
            kept = _kept(group, found, resolve, refill)
            for member in group.members:
                if (mask := found.get(member.path)) is None:
                    continue
                here, there = member.spread(kept, mask), member.covers(group.units, mask)
                path = member.path
                # A layer between two others has neurons on both of its axes.
                stays[path] = stays[path] & here if path in stays else here
                covered[path] = covered[path] | there if path in covered else there
            for path in group.outputs:
                if refill and path in found:
                    new[path] = _ones(found[path])
        for path, here in stays.items():
            mask = found[path]
            new[path] = here & (jnp.where(covered[path], _ones(mask), mask) if refill else mask)
        return new

    def report(
        self, masks: Tree, resolve: Resolve = "union", *, refill: bool = True
    ) -> StructureReport:
        """Which heads and neurons `resolve` would keep of masks, by name.

        Of what is resolved already these are the units that are there: a union keeps them.

        Args:
          masks, resolve, refill: as in `resolve`. By default a unit is kept if anything of
            it is, also where that is a bias alone.

        Raises:
          ValueError, KeyError: as `resolve`, but for groups without masks.
        """
        found = self._read(masks, resolve)
        rows = []
        for group in self.groups:
            lacking = tuple(group.lacking(found))
            if len(lacking) == len({member.path for member in group.weights}):
                continue
            if lacking:
                rows.append(KeptUnits(group, np.arange(group.units), lacking))
                continue
            rows.append(KeptUnits(group, np.flatnonzero(_kept(group, found, resolve, refill))))
        return StructureReport(tuple(rows))

    def _read(self, masks: Tree, resolve: Resolve) -> dict[str, Bool[Array, "..."]]:
        """The masks by path, if arguments are what `resolve` takes."""
        if resolve not in ("union", "intersection"):
            raise ValueError(f"resolve={resolve!r} is neither 'union' nor 'intersection'")
        given, shapes = leaves_by_path(masks), dict(self.shapes)
        for path, mask in given.items():
            if jnp.issubdtype(jnp.result_type(mask), jnp.inexact):
                raise ValueError(
                    f"the mask of {path!r} is of {jnp.result_type(mask)}, like a weight; bool "
                    "would work"
                )
            if shapes and path not in shapes:
                raise KeyError(f"mask for {path!r}, but no such leaf; {near_misses(path, shapes)}")
            if shapes and jnp.shape(mask) != shapes[path]:
                raise ValueError(
                    f"the mask of {path!r} has shape {jnp.shape(mask)}, the leaf {shapes[path]}"
                )
        for member in (member for group in self.groups for member in group.members):
            shape = jnp.shape(given[member.path]) if member.path in given else None
            if shape is None or shape[member.axis : member.axis + 1] == (member.axis_size,):
                continue
            raise ValueError(
                f"the mask of {member.path!r} has shape {shape}; the structure knows "
                f"{member.axis_size} positions on axis {member.axis} of it"
            )
        return {path: jnp.asarray(mask, bool) for path, mask in given.items()}

    def __str__(self) -> str:
        return "\n".join(map(str, self.groups)) or "no heads and no neurons"


def _ones(mask: Bool[Array, "..."]) -> Bool[Array, "..."]:
    """True everywhere; a constant would come out replicated, this is sharded as the mask is."""
    return mask | ~mask


def _kept(
    group: StructuredGroup, masks: Masks, resolve: Resolve, refill: bool
) -> Bool[Array, " units"]:
    """Which units stay: at least one."""
    votes = group.votes(masks)
    every = jnp.stack([*votes.values()])
    if resolve == "intersection":
        kept = every.all(axis=0)
    elif not refill:
        readers = [vote for member, vote in votes.items() if member.role == "reads"]
        kept = jnp.stack(readers).any(axis=0)
    else:
        kept = every.any(axis=0)
        for member in group.members:
            layer = None if member.layer is None else masks.get(member.layer)
            if layer is not None and member.path in masks:
                alive = jnp.any(layer)
                kept |= member.keeps(masks[member.path], group.units) & alive
    first = jnp.arange(group.units) == jnp.argmax(every.sum(axis=0))
    return kept | (first & ~kept.any())
