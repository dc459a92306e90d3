"""What NetAdapt found."""

import dataclasses
from typing import Any

from jaxtyping import Array, Bool

from jaxsparse.allocation.allocation import Allocation
from jaxsparse.allocation.netadapt.rules import Candidate
from jaxsparse.text import columned
from jaxsparse.trees import Tree


@dataclasses.dataclass(frozen=True)
class NetAdapt:
    """What `netadapt` found; `str(found)` has a line for every iteration.

    Attributes:
      allocation: how many units each group keeps.
      params: after the long tuning, +0 in units that are gone. For `js.graph.shrink`.
      masks: by path, True is kept; of every leaf that units lie in.
      candidates: all that was proposed, in order.
      unit: of costs.
      budget: that was given.
      cost_before, cost: of the whole network and of the one that was found.
      accuracy_before, accuracy: as well; the latter after the long tuning.
    """

    allocation: Allocation
    params: Tree
    masks: dict[str, Bool[Array, "..."]]
    candidates: tuple[Candidate, ...]
    unit: str
    budget: float
    cost_before: float
    cost: float
    accuracy_before: float
    accuracy: float

    @property
    def chosen(self) -> tuple[Candidate, ...]:
        """The candidate of each iteration that the next one began with."""
        return tuple(each for each in self.candidates if each.chosen)

    def to_dict(self) -> dict[str, Any]:
        """All but parameters and masks, for JSON and figures."""
        names = ("unit", "budget", "cost_before", "cost", "accuracy_before", "accuracy")
        found: dict[str, Any] = {name: getattr(self, name) for name in names}
        found["widths"] = dict(self.allocation.widths)
        found["candidates"] = [each.to_dict() for each in self.candidates]
        return found

    def __str__(self) -> str:
        head = (
            f"{self.cost:g} of {self.cost_before:g} {self.unit} (budget {self.budget:g}), accuracy "
            f"{self.accuracy:.4f} from {self.accuracy_before:.4f}"
        )
        rows: list[tuple[str, ...]] = [("", "group", "width", self.unit, "target", "accuracy")]
        for each in self.chosen:
            row = (str(each.iteration), each.group, str(each.width), f"{each.cost:g}")
            rows.append((*row, f"{each.target:g}", f"{each.accuracy:.4f}"))
        return "\n".join([head, *columned(rows, {1})])
