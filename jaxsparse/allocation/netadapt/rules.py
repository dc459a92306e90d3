"""What an iteration of NetAdapt proposes for a group, and which proposal it keeps."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

Choice = Literal["accuracy", "ratio"]


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A network that an iteration tried, or passed over.

    Attributes:
      iteration: from 1 on.
      group: whose width it takes down.
      width: units of the group that are left.
      cost: of the whole network then, in the unit of the cost model.
      target: what the iteration is to get below.
      accuracy: after the short tuning; None of one that was not tuned, as it could not be chosen.
      chosen: whether the next iteration begins with it.
    """

    iteration: int
    group: str
    width: int
    cost: float
    target: float
    accuracy: float | None = None
    chosen: bool = False

    @property
    def meets(self) -> bool:
        """Whether the cost is below the target."""
        return self.cost < self.target

    def to_dict(self) -> dict[str, Any]:
        """What JSON holds; `Candidate(**found)` is the inverse."""
        return dataclasses.asdict(self)


def reduction_bound(initial: float, decay: float, iterations: float = math.inf) -> float:
    """The share of the cost that is gone if every iteration just meets its target.

        initial (1 - decay^iterations) / (1 - decay)

    Widths come in steps, so that iterations take off more than they are asked for, and a run
    may get below 1 minus the bound.

    Args:
      initial: what the first iteration takes off, as a share of the cost of the whole.
      decay: how much less each iteration takes off than the one before.
      iterations: how many; as many as it takes by default.

    Example:
      >>> round(reduction_bound(0.025, 0.96), 6), round(reduction_bound(0.025, 0.96, 10), 6)
      (0.625, 0.20948)
    """
    if decay == 1:
        return initial * iterations
    return initial * (1 - decay**iterations) / (1 - decay)


def proposal(
    width: int,
    divisor: int,
    lowest: int,
    cost: Callable[[int], float],
    target: float,
) -> tuple[int, float]:
    """The largest width of a group with which the network costs less than the target.

    Args:
      width: what the group has.
      divisor: widths are its multiples; a group that is narrower keeps what it has.
      lowest: width that none goes below.
      cost: of the network by the group's width.
      target: what the cost has to be below.

    Returns:
      The width and its cost; the lowest width where none is below the target.

    Example:
      >>> proposal(20, 8, 1, lambda width: 10 * width, 170)
      (16, 160)
      >>> proposal(20, 8, 1, lambda width: 10 * width, 50)
      (8, 80)
    """
    found = width, cost(width)
    for narrower in range(width // divisor * divisor, lowest - 1, -divisor):
        found = narrower, cost(narrower)
        if found[1] < target:
            return found
    return found


def in_question(proposals: Sequence[Candidate], choice: Choice, cost: float) -> list[Candidate]:
    """The proposals among which `choose` chooses: the others need no tuning.

    Args:
      proposals: of an iteration.
      choice: see `choose`.
      cost: of the network that the iteration began with.
    """
    cheaper = [each for each in proposals if each.cost < cost]
    meeting = [each for each in cheaper if each.meets]
    return meeting if choice == "accuracy" and meeting else cheaper


def choose(
    tuned: Sequence[Candidate], choice: Choice, cost: float, accuracy: float
) -> Candidate | None:
    """The candidate that the next iteration begins with; the first of equal ones.

    - "accuracy": of those that meet the target, the most accurate one, of equally accurate ones
      the cheapest. Where none does, as "ratio".
    - "ratio": of those that cost less than before, whether they meet the target or not, the least

          (accuracy before - accuracy + 1e-6) / (cost before - cost + 1e-5)

    Args:
      tuned: candidates with an accuracy.
      choice: by what.
      cost, accuracy: of the network that the iteration began with.

    Example:
      >>> wide = Candidate(1, "a", 24, cost=90, target=92, accuracy=0.9)
      >>> slim = Candidate(1, "b", 8, cost=70, target=92, accuracy=0.89)
      >>> [choose([wide, slim], by, 100, 0.91).group for by in ("accuracy", "ratio")]
      ['a', 'b']
    """

    def lost(each: Candidate) -> float:
        return (accuracy - (each.accuracy or 0.0) + 1e-6) / (cost - each.cost + 1e-5)

    meeting = [each for each in tuned if each.meets]
    if choice == "accuracy" and meeting:
        return max(meeting, key=lambda each: (each.accuracy, -each.cost))
    return min((each for each in tuned if each.cost < cost), key=lost, default=None)
