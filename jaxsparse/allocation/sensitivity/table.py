"""What each leaf, kernel or group of units loses at each ratio, and the ratios that follow."""

import dataclasses
import math
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy import special

from jaxsparse.allocation.allocation import Allocation
from jaxsparse.allocation.costs.flops import Cost
from jaxsparse.allocation.sensitivity.changes import Change, Curve, Joint
from jaxsparse.allocation.sensitivity.records import Better, Over, Record, read, write
from jaxsparse.text import columned
from jaxsparse.trees import near_misses

Measure = Callable[[Mapping[str, int]], Change]


@dataclasses.dataclass(frozen=True)
class Sensitivity:
    """The table of a scan; `str` prints it, a column of drops a ratio.

    Attributes:
      better: "higher" or "lower" values of the metric are.
      ratios: that were tried.
      curves: by name of a leaf, kernel or group of units.
      dense: metric of the dense model.
      samples: how many differences a drop is the mean of.
      over: what these are, "examples" or "batches".
      run: fingerprints of what the numbers follow from.
      measure: by name how many units go -> what the model with all of them pruned loses; None
        of a table that was read from a file.
    """

    better: Better
    ratios: tuple[float, ...]
    curves: Mapping[str, Curve]
    dense: float
    samples: int
    over: Over
    run: Mapping[str, str] = dataclasses.field(default_factory=dict, repr=False)
    measure: Measure | None = dataclasses.field(default=None, repr=False, compare=False)

    @property
    def levels(self) -> tuple[float, ...]:
        """The ratios with 0, the dense model, before them."""
        return (0.0, *self.ratios)

    @property
    def losses(self) -> dict[str, tuple[float, ...]]:
        """By name the drop at each of the `levels`, as `js.allocation.exact` takes them."""
        return {
            name: (0.0, *(change.drop for change in curve.changes))
            for name, curve in self.curves.items()
        }

    def bands(self, level: float = 0.95) -> dict[str, Float[np.ndarray, "ratios 2"]]:
        """By name lower and upper ends of the drops at each ratio, drop ± t error.

        t is the (1 + level) / 2 quantile of Student's distribution with samples - 1 degrees of
        freedom: each band by itself holds the drop over all data with probability `level`, as
        far as examples (or batches) are drawn independently. NaN of a single sample.

        Raises:
          ValueError: for a level outside (0, 1).
        """
        if not 0 < level < 1:
            raise ValueError(f"bands: level={level!r}; a probability such as 0.95 would work")
        # Without a degree of freedom the errors are NaN, too.
        t = special.stdtrit(max(self.samples - 1, 1), (1 + level) / 2)
        found = {}
        for name, curve in self.curves.items():
            drops, errors = np.array([change[1:] for change in curve.changes]).T
            found[name] = np.stack([drops - t * errors, drops + t * errors], axis=1)
        return found

    def tolerated(self, drop: float) -> dict[str, float]:
        """By name the largest ratio at which no ratio up to it loses more than `drop`; 0 if none.

            r(tau) = max {r : D(r) <= tau},  D the running maximum of the drops

        Raises:
          ValueError: for a drop that is NaN.
        """
        if math.isnan(drop):
            raise ValueError(f"tolerated: drop={drop!r}; a number would work")
        return {
            name: self.levels[sum(worst <= drop for worst in curve.worst)]
            for name, curve in self.curves.items()
        }

    def allocation(
        self,
        cost: Cost | None = None,
        budget: float | None = None,
        *,
        drop: float | None = None,
        sparsity: float | None = None,
    ) -> Allocation:
        """Ratios for a drop that is tolerated everywhere, or for a budget.

        With `cost` and `budget`, or with `sparsity` (of the scanned leaves together, counted in
        weights), it is the smallest drop tau among the table's own D (see `tolerated`) whose
        ratios reach it: between these nothing changes. Dense, where that does. A drop is of each
        leaf alone; what they lose together is asked of `joint`.

        Args:
          cost: of which the budget is.
          budget: the most that the pruned model may cost.
          drop: that each may lose alone.
          sparsity: that the leaves are to reach.

        Returns:
          sparsities of leaves and widths of groups, zero and whole ones among them.

        Raises:
          ValueError: for no or several of the three; for a budget or a sparsity that is out of
            reach, with the lowest cost or the highest sparsity that the table has; for kernels
            of a stack apart, whose leaf has one sparsity in a distribution; and for a sparsity
            of groups of units, which have no weights of their own.
        """
        asked = (cost is not None or budget is not None, drop is not None, sparsity is not None)
        if sum(asked) != 1 or (cost is None) != (budget is None):
            raise ValueError(
                "allocation: one of drop=, sparsity=, and cost= with budget= would work; given: "
                f"cost={cost!r}, budget={budget!r}, drop={drop!r}, sparsity={sparsity!r}"
            )
        for name, curve in self.curves.items():
            if curve.target.kind == "kernel":
                raise ValueError(
                    f"allocation: {name!r} is one kernel of a stack, and a distribution has one "
                    "sparsity a leaf; a scan with stacked='together' would work"
                )
        if drop is not None:
            return self._allocate(self.tolerated(drop), f"drop up to {drop:g} each")
        drops = sorted({worst for curve in self.curves.values() for worst in curve.worst})
        tries = [dict.fromkeys(self.curves, 0.0), *map(self.tolerated, drops)]
        if sparsity is not None:
            return self._sparse(sparsity, tries)
        assert cost is not None and budget is not None
        if math.isnan(budget):
            raise ValueError(f"allocation: budget={budget!r}; a number of {cost.unit} would work")
        found = []
        for ratios in tries:
            found.append(cost.total(widths=self._widths(ratios), densities=self._densities(ratios)))
            if found[-1] <= budget:
                return self._allocate(ratios, f"{found[-1]:g} of {budget:g} {cost.unit}")
        raise ValueError(
            f"allocation: budget={budget} {cost.unit} is out of reach: the dense model costs "
            f"{found[0]}, and with ratios up to {self.ratios[-1]} the least is {min(found)}; a "
            "budget from there on, or a scan of higher ratios, would work"
        )

    def joint(self, chosen: Allocation | Mapping[str, float]) -> Joint:
        """Prunes everything at once, and has what that loses beside the sum of the single drops.

        Args:
          chosen: an allocation of this table, or ratios of it by name, 0 and those that are not
            named being dense.

        Raises:
          ValueError: for a table that was read from a file, which has no model, for names and
            ratios that the table lacks.
        """
        if self.measure is None:
            raise ValueError(
                "joint: this table was read from a file and has no model to run; scan(..., path=) "
                "of the file, which measures no cell twice, would work"
            )
        ratios = self._ratios(chosen) if isinstance(chosen, Allocation) else chosen
        pruned, alone = {}, {}
        for name, ratio in ratios.items():
            if name not in self.curves:
                raise ValueError(
                    f"joint: the scan has no {name!r}; {near_misses(name, self.curves)}"
                )
            if ratio not in self.levels:
                raise ValueError(
                    f"joint: the scan has no ratio {ratio} of {name!r}; one of {self.levels} would "
                    "work"
                )
            target = self.curves[name].target
            pruned[name] = target.units - target.kept(ratio)
            alone[name] = self.losses[name][self.levels.index(ratio)]
        return Joint(self.measure(pruned), alone)

    def to_dict(self) -> dict[str, Any]:
        """What JSON holds."""
        record = Record(
            better=self.better,
            ratios=self.ratios,
            targets={name: curve.target for name, curve in self.curves.items()},
            cells={name: curve.changes for name, curve in self.curves.items()},
            dense=self.dense,
            samples=self.samples,
            over=self.over,
            run=self.run,
        )
        return record.to_dict()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes JSON that `load` reads, and `scan(..., path=)` takes for done.

        Raises:
          OSError: the file cannot be written; it is named.
        """
        write(pathlib.Path(path), self.to_dict())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Sensitivity":
        """Reads what `save`, or a scan that came to its end, wrote.

        Raises:
          ValueError: no such JSON, or a scan that was killed; file and key are named.
          OSError: the file cannot be read.
        """
        file = pathlib.Path(path)
        record = read(file)
        if lacking := record.total - record.known:
            raise ValueError(
                f"{file}: the scan was killed: {lacking} of {record.total} cells are not there; "
                "scan(..., path=) of this file goes on"
            )
        return cls.of(record)

    @classmethod
    def of(cls, record: Record, measure: Measure | None = None) -> "Sensitivity":
        """The table of a record that lacks no cell."""
        curves = {}
        for name, cells in record.cells.items():
            changes = tuple(cell for cell in cells if cell is not None)
            curves[name] = Curve(record.targets[name], changes)
        return cls(
            better=record.better,
            ratios=record.ratios,
            curves=curves,
            dense=record.dense,
            samples=record.samples,
            over=record.over,
            run=record.run,
            measure=measure,
        )

    def __str__(self) -> str:
        rows: list[tuple[Any, ...]] = [("", "units", *(f"{ratio:g}" for ratio in self.ratios))]
        for name, curve in self.curves.items():
            rows.append((name, curve.target.units, *(f"{c.drop:.4g}" for c in curve.changes)))
        head = (
            f"drops of a metric that is {self.dense:.4g} dense, {self.better} is better, by ratio"
        )
        return "\n".join([f"{head} (means of {self.samples} {self.over})", *columned(rows, {0})])

    def _widths(self, ratios: Mapping[str, float]) -> dict[str, int]:
        targets = {name: self.curves[name].target for name in ratios}
        return {n: t.kept(ratios[n]) for n, t in targets.items() if t.kind == "group"}

    def _densities(self, ratios: Mapping[str, float]) -> dict[str, float]:
        targets = {name: self.curves[name].target for name in ratios}
        return {n: t.density(ratios[n]) for n, t in targets.items() if t.kind == "leaf"}

    def _allocate(self, ratios: Mapping[str, float], why: str) -> Allocation:
        leaves = {n: r for n, r in ratios.items() if self.curves[n].target.kind == "leaf"}
        about = {"search": "sensitivity", "reached": why}
        return Allocation(leaves, self._widths(ratios), about)

    def _ratios(self, chosen: Allocation) -> dict[str, float]:
        ratios = dict(chosen.sparsities)
        for name, width in chosen.widths.items():
            if name in self.curves:
                kept = [self.curves[name].target.kept(ratio) for ratio in self.levels]
                if width not in kept:
                    raise ValueError(
                        f"joint: the scan has no width {width} of {name!r}; one of "
                        f"{sorted(set(kept))} would work"
                    )
                ratios[name] = self.levels[kept.index(width)]
            else:
                ratios[name] = 0.0  # refused by name
        return ratios

    def _sparse(self, sparsity: float, tries: list[dict[str, float]]) -> Allocation:
        targets = {name: curve.target for name, curve in self.curves.items()}
        for name, target in targets.items():
            if target.kind == "group":
                raise ValueError(
                    f"allocation: sparsity={sparsity} of leaves, but {name!r} is a group of units; "
                    "cost= and budget= would work"
                )
        whole, found = sum(target.size for target in targets.values()), []
        for ratios in tries:
            left = sum(t.size * t.density(ratios[name]) for name, t in targets.items())
            found.append(1 - left / whole)
            if found[-1] >= sparsity - 1e-12:  # 1 - 0.4 is less than 0.6
                return self._allocate(ratios, f"sparsity {found[-1]:g} of {sparsity:g}")
        raise ValueError(
            f"allocation: sparsity={sparsity} is out of reach: with ratios up to {self.ratios[-1]} "
            f"the leaves together reach {max(found):g}; a scan of higher ratios would work"
        )
