"""What can be pruned while the rest stays dense, and what that changes."""

import dataclasses
import itertools
from collections.abc import Mapping
from typing import Literal, NamedTuple

Kind = Literal["leaf", "kernel", "group"]


class Target(NamedTuple):
    """Something that is pruned while the rest stays dense.

    Attributes:
      kind: a "leaf", one "kernel" of a stack, or a "group" of units.
      units: groups of the pattern, in one kernel of a stack; or units of the group.
      size: numbers in the weight; 0 of a group, whose units share weights with other groups.
      limit: the largest fraction that its pattern prunes.
      padding: numbers that groups at its edges lack, of all kernels.
    """

    kind: Kind
    units: int
    size: int = 0
    limit: float = 1.0
    padding: int = 0

    def kept(self, ratio: float) -> int:
        """Units that stay: n - round(r n), of n:m with r relative to its maximum."""
        return self.units - round(ratio / self.limit * self.units)

    def density(self, ratio: float) -> float:
        """Fraction of the weight that stays: of what is kept, not of what was asked for.

        Of groups with padding it is what stays at most, where it is the fuller ones.
        """
        found = 1 - self.limit * (self.units - self.kept(ratio)) / self.units
        return min(found * (1 + self.padding / self.size), 1.0) if self.padding else found


class Change(NamedTuple):
    """A pruned model against the dense one.

    Attributes:
      metric: of the pruned model.
      drop: by how much that is worse; below 0 where it is better.
      error: standard error of the drop, NaN of a single example or batch.
    """

    metric: float
    drop: float
    error: float


@dataclasses.dataclass(frozen=True)
class Curve:
    """What one target loses, by ratio.

    Attributes:
      target: what is pruned.
      changes: one a ratio of the table.
    """

    target: Target
    changes: tuple[Change, ...]

    @property
    def worst(self) -> tuple[float, ...]:
        """The running maximum of the drops, D(r): a curve that recovers by chance does not."""
        return tuple(itertools.accumulate((change.drop for change in self.changes), max))


@dataclasses.dataclass(frozen=True)
class Joint:
    """What pruning everything at once loses, beside what each loses alone; `str` says so.

    Attributes:
      change: of the model with everything pruned.
      alone: by name, the drop of each with the rest dense.
    """

    change: Change
    alone: Mapping[str, float]

    @property
    def sum(self) -> float:
        """Of the single drops: what would be lost if layers did not interact."""
        return sum(self.alone.values())

    def __str__(self) -> str:
        _, drop, error = self.change
        return f"together {drop:.4g} ± {error:.2g}, alone {self.sum:.4g} in sum"
