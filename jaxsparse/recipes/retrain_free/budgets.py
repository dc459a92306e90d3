"""Budgets of FLOPs and of measured latency: what is out of reach, and who stays under them."""

import math
import numbers
from collections.abc import Mapping, Sequence
from typing import Protocol

import jax

from jaxsparse.allocation import Flops
from jaxsparse.graph import StructuredGroup
from jaxsparse.recipes.retrain_free.search import Importance, Kept, search_costs, search_table
from jaxsparse.trees import near_misses

HALVINGS = 30


class Budget(Protocol):
    """What `prune` asks of a budget."""

    def search(self, importance: Importance) -> Kept:
        """The units that stay, with the largest sum of importance."""
        ...

    def looser(self) -> "Budget":
        """The budget of a teacher: the geometric mean of this one and the dense model's cost."""
        ...

    def seconds(self, kept: Kept) -> tuple[float | None, float | None]:
        """What the dense and the pruned model take, by a table of latency."""
        ...


class FlopsBudget:
    """A share of the multiplications of the dense program.

    Args:
      flops: of the program.
      groups: whose units may go.
      share: of the dense program's.

    Raises:
      ValueError: a share outside (0, 1], or below that of one unit a group.
    """

    def __init__(self, flops: Flops, groups: Sequence[StructuredGroup], share: float):
        if not isinstance(share, numbers.Real | jax.Array) or not 0 < share <= 1:
            raise ValueError(
                f"retrain_free: flops={share!r}; a share of the dense model's in (0, 1] would work"
            )
        self._flops, self._groups, self._share = flops, groups, share
        self._dense = flops.total()
        # What goes with one unit of a group, all others being there.
        self._costs = {
            group.name: self._dense - flops.total({group.name: group.units - 1})
            if group.units > 1
            else 0
            for group in groups
        }
        if not self._dense:
            raise ValueError(
                "retrain_free: on the first batch the model multiplies nothing, so no share of its "
                f"FLOPs is any; its inputs are {flops.inputs}, and one example would work"
            )
        self._limit = share * self._dense
        least = flops.total({group.name: 1 for group in groups})
        if least > self._limit:
            raise ValueError(
                f"retrain_free: flops={share} is out of reach: with one unit of every group "
                f"{2 * least:,} of {2 * self._dense:,} FLOPs are left, so from "
                f"flops={math.ceil(least / self._dense * 1e4) / 1e4} on it would work"
            )

    def search(self, importance: Importance) -> Kept:
        """See `Budget`."""
        units = {name: len(values) for name, values in importance.items()}
        # What is left if costs add up, which they do but where two groups meet in a product.
        fixed = self._dense - sum(self._costs[name] * n for name, n in units.items())
        low, high = float(sum(self._costs.values())), self._limit - fixed
        best = search_costs(importance, self._costs, max(low, high))
        if self._fits(best):
            return best
        best = search_costs(importance, self._costs, low)
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            found = search_costs(importance, self._costs, middle)
            if self._fits(found):
                best, low = found, middle
            else:
                high = middle
        return best

    def _fits(self, kept: Kept) -> bool:
        widths = {name: int(units.sum()) for name, units in kept.items()}
        return self._flops.total(widths) <= self._limit * (1 + 1e-12)

    def looser(self) -> "FlopsBudget":
        """See `Budget`."""
        return FlopsBudget(self._flops, self._groups, math.sqrt(self._share))

    def seconds(self, kept: Kept) -> tuple[None, None]:
        """There is no table."""
        return None, None


class LatencyBudget:
    """Seconds, by a table of measured ones.

    Raises:
      ValueError: a table that lacks a group or its whole, has numbers of units that there are
        not, or times that are no finite seconds; and a budget below the cheapest.
    """

    def __init__(
        self,
        groups: Sequence[StructuredGroup],
        table: Mapping[tuple[str, int], float],
        limit: float,
    ):
        self._units = {group.name: group.units for group in groups}
        self._table, self._limit, self._groups = dict(table), limit, groups
        self._check()
        least = sum(
            min(time for (name, _), time in self._table.items() if name == group)
            for group in self._units
        )
        if not isinstance(limit, numbers.Real | jax.Array) or not limit >= least:
            raise ValueError(
                f"retrain_free: seconds={limit!r} is out of reach: the cheapest entries of "
                f"latency= add up to {least}, so from seconds={least} on it would work"
            )

    def _check(self) -> None:
        for key, time in self._table.items():
            if not isinstance(key, tuple) or len(key) != 2:
                raise ValueError(
                    f"retrain_free: latency: {key!r} is no pair; (name of a group, how many units "
                    "it keeps) would work"
                )
            name, count = key
            if name not in self._units:
                raise ValueError(
                    f"retrain_free: latency: {key!r} is of no group; "
                    f"{near_misses(str(name), self._units)}"
                )
            if not isinstance(count, numbers.Integral) or not 1 <= count <= self._units[name]:
                raise ValueError(
                    f"retrain_free: latency: {key!r}: {name!r} keeps 1 to {self._units[name]} units"
                )
            if not isinstance(time, numbers.Real | jax.Array) or not (
                math.isfinite(time) and time >= 0
            ):
                raise ValueError(
                    f"retrain_free: latency: {key!r} takes {time!r}; finite seconds would work"
                )
        for name, units in self._units.items():
            if (name, units) not in self._table:
                raise ValueError(
                    f"retrain_free: latency has no entry ({name!r}, {units}), which is the whole "
                    "group; seconds for it, or groups= that leaves it out, would work"
                )

    def search(self, importance: Importance) -> Kept:
        """See `Budget`."""
        return search_table(importance, self._table, self._limit)

    def looser(self) -> "LatencyBudget":
        """See `Budget`."""
        dense = sum(self._table[name, units] for name, units in self._units.items())
        return LatencyBudget(
            self._groups, self._table, max(self._limit, math.sqrt(self._limit * dense))
        )

    def seconds(self, kept: Kept) -> tuple[float, float]:
        """See `Budget`."""
        dense = sum(self._table[name, units] for name, units in self._units.items())
        return dense, sum(self._table[name, int(units.sum())] for name, units in kept.items())
