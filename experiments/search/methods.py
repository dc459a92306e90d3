"""Methods of a search by name: what finds the widths."""

from typing import Any, NamedTuple

from experiments.registry import Registry
from experiments.search.problem import Problem
from jaxsparse.allocation import Allocation


class Found(NamedTuple):
    """What a search found.

    Attributes:
      allocation: the widths of all groups.
      history: numbers for figures, as JSON has them.
      tree: weights that the search trained; None where it left those of the dense model.
    """

    allocation: Allocation
    history: dict[str, Any]
    tree: Any = None


METHODS: Registry[Found] = Registry("method", given=1)


@METHODS.register("uniform")
def uniform(problem: Problem) -> Found:
    """All groups scaled alike: the largest share of their units that keeps the budget."""
    cost, limits = problem.cost, problem.limits
    tried = []
    for share in limits.shares():
        widths = limits.at(share)
        tried.append((float(share), cost.total(widths)))
        if tried[-1][1] <= problem.budget:
            break
    allocation = Allocation(widths=widths, about={"search": "uniform", "share": float(share)})
    return Found(allocation, {"tried": tried})
