"""What a search of AMC found, and what it tried."""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Array, Bool, Float

from jaxsparse.allocation.allocation import Allocation
from jaxsparse.text import columned
from jaxsparse.trees import Tree


class Episodes(NamedTuple):
    """Episode by episode.

    Attributes:
      rewards, accuracies, costs: of the policy that was tried; a cost in the unit of the budget.
      kept: the fraction that it kept of everything that was decided.
    """

    rewards: Float[np.ndarray, " episodes"]
    accuracies: Float[np.ndarray, " episodes"]
    costs: Float[np.ndarray, " episodes"]
    kept: Float[np.ndarray, "episodes steps"]


@dataclasses.dataclass(frozen=True)
class AMC:
    """What `amc` found; `str(found)` has a line for all that was decided.

    Attributes:
      allocation: the best policy: widths of groups, or sparsities of leaves.
      params: the weights that it leaves, with readers fitted to the units that are kept.
      masks: by path, True is kept.
      accuracy, cost: of it.
      dense_accuracy, dense_cost: of the model before.
      budget: that it was searched under, None for none.
      unit: of costs.
      names: of what was decided, in the order of the program.
      history: of the search.
      unfitted: by path of a reader why it was masked alone.
    """

    allocation: Allocation
    params: Tree
    masks: Mapping[str, Bool[Array, "..."]]
    accuracy: float
    cost: int | float
    dense_accuracy: float
    dense_cost: int | float
    budget: float | None
    unit: str
    names: tuple[str, ...]
    history: Episodes
    unfitted: Mapping[str, str]

    def to_dict(self) -> dict[str, Any]:
        """All but the arrays of the model, for JSON."""
        plain = ("accuracy", "cost", "dense_accuracy", "dense_cost", "budget", "unit")
        found = {name: getattr(self, name) for name in plain}
        history = {name: np.asarray(v).tolist() for name, v in self.history._asdict().items()}
        found |= {"names": list(self.names), "history": history}
        return found | {"allocation": self.allocation.to_dict(), "unfitted": dict(self.unfitted)}

    def __str__(self) -> str:
        within = "" if self.budget is None else f" (budget {self.budget:g})"
        head = (
            f"{self.cost:g} of {self.dense_cost:g} {self.unit}{within}, accuracy "
            f"{self.accuracy:.4f} from {self.dense_accuracy:.4f}, the best of "
            f"{len(self.history.rewards)} episodes"
        )
        kept = self.history.kept[int(np.argmax(self.history.rewards))]
        rows = [(name, f"{share:.1%}") for name, share in zip(self.names, kept, strict=True)]
        return "\n".join([head, *columned([("", "kept"), *rows], {0})])
