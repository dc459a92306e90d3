"""Where the heads and neurons of a model lie, and what masks keep of each."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Int

from jaxsparse.graph.analysis.pieces import others
from jaxsparse.pruning.masking import sharded_as

Role = Literal["writes", "reads", "beside"]


@dataclasses.dataclass(frozen=True)
class Member:
    """Where the units of a group lie on one axis of a leaf.

    Unit u has the positions offset + u * stride + i_1 * d_1 + i_2 * d_2 + ... for all
    i_k < n_k of `repeats` = ((n_1, d_1), (n_2, d_2), ...).

    Attributes:
      path: slash path of the leaf.
      axis: of the leaf.
      axis_size: size of that axis.
      role: "writes" of a weight that a product ends in the units by, "reads" of one that
        sums over them, "beside" of what is neither: a bias, a scale.
      offset: first position of unit 0.
      stride: distance of two neighbouring units.
      repeats: the other positions of a unit, as pairs of count and distance; the 64
        neighbours of a head are ((64, 1),).
      layer: of a bias, the path of the weight whose product it is added to.
    """

    path: str
    axis: int
    axis_size: int
    role: Role
    offset: int = 0
    stride: int = 1
    repeats: tuple[tuple[int, int], ...] = ()
    layer: str | None = None

    def positions(self, units: int) -> Int[np.ndarray, "units each"]:
        """The positions on the axis of every unit."""
        found = self.offset + self.stride * np.arange(units)[:, None]
        for count, distance in self.repeats:
            found = (found[:, :, None] + distance * np.arange(count)).reshape(units, -1)
        return found

    def keeps(self, mask: Bool[Array, "..."], units: int) -> Bool[Array, " units"]:
        """Whether a mask of the leaf keeps any entry of each unit."""
        used = _replicated(jnp.any(mask, axis=others(self.axis, mask.ndim)))
        return jnp.any(used[self.positions(units)], axis=1)

    def spread(self, kept: Bool[Array, " units"], mask: Bool[Array, "..."]) -> Bool[Array, "..."]:
        """True in the shape of a mask but where a unit lies that is not kept."""
        unit_of = np.full(self.axis_size, kept.shape[0])
        positions = self.positions(kept.shape[0])
        unit_of[positions] = np.arange(kept.shape[0])[:, None]
        here = jnp.append(kept, True)[unit_of]
        return self._along(here, mask)

    def covers(self, units: int, mask: Bool[Array, "..."]) -> Bool[Array, "..."]:
        """True in the shape of a mask where a unit lies."""
        here = np.zeros(self.axis_size, bool)
        here[self.positions(units)] = True
        return self._along(jnp.asarray(here), mask)

    def _along(self, vector, mask):
        vector = jnp.expand_dims(vector, others(self.axis, mask.ndim))
        return sharded_as(jnp.broadcast_to(vector, mask.shape), mask)

    def __str__(self) -> str:
        return f"{self.path}[{self.axis}]"


@dataclasses.dataclass(frozen=True)
class StructuredGroup:
    """The heads of one attention, or the neurons of one layer: units that go as a whole.

    Attributes:
      name: of a group that was found, the folder that its weights share, if no other group
        shares the same, else that and their names, as in `layers/0/{up, down}`.
      kind: "heads", "neurons", "channels" of a convolution, or a word of your own.
      units: how many.
      members: where they lie.
      outputs: biases that are added to what the readers make of the units.
    """

    name: str
    kind: str
    units: int
    members: tuple[Member, ...]
    outputs: tuple[str, ...] = ()

    def __post_init__(self):
        for member in self.members:
            last = int(member.positions(self.units).max(initial=-1))
            first = int(member.positions(self.units).min(initial=0))
            if first < 0 or last >= member.axis_size:
                raise ValueError(
                    f"{self.name}: {self.units} {self.kind} in {member} would lie at positions "
                    f"{first} to {last}, and the axis has {member.axis_size}"
                )
        roles = {member.role for member in self.weights}
        if roles != {"writes", "reads"}:
            raise ValueError(
                f"{self.name}: {self.kind} need a member that writes them and one that reads "
                f"them; given: {', '.join(sorted(roles)) or 'none'}"
            )

    @property
    def weights(self) -> tuple[Member, ...]:
        """The members that products multiply by."""
        return tuple(member for member in self.members if member.role != "beside")

    def lacking(self, masks: Mapping[str, Any]) -> list[str]:
        """Paths of the weights that have no mask."""
        return [path for path in dict.fromkeys(m.path for m in self.weights) if path not in masks]

    def votes(self, masks: Mapping[str, Bool[Array, "..."]]) -> dict[Member, Bool[Array, " units"]]:
        """By weight, whether its mask keeps any entry of each unit."""
        return {member: member.keeps(masks[member.path], self.units) for member in self.weights}

    def __str__(self) -> str:
        where = {
            role: ", ".join(str(member) for member in self.members if member.role == role)
            for role in ("writes", "reads")
        }
        return (
            f"{self.name}: {self.units} {self.kind}, written by {where['writes']}, "
            f"read by {where['reads']}"
        )


def _replicated(vector: Bool[Array, " n"]) -> Bool[Array, " n"]:
    """A vector on every device of an explicit mesh, so that any of its positions can be taken."""
    sharding = jax.typeof(vector).sharding
    if sharding.mesh.are_all_axes_explicit:
        return jax.sharding.reshard(vector, NamedSharding(sharding.mesh, PartitionSpec(None)))
    return vector
