"""Whole assignments and what they lose when measured: each once, also over kills."""

import json
import math
import numbers
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax

from jaxsparse.allocation.allocation import Allocation
from jaxsparse.allocation.jsons import parsed
from jaxsparse.allocation.tables import Table
from jaxsparse.files import naming, replacing
from jaxsparse.text import shorten, whole

FORMAT = 1

Evaluate = Callable[[Allocation], float]


class Tried(NamedTuple):
    """One assignment of a search.

    Attributes:
      stage: of the search.
      predicted: what it loses by the table.
      measured: what `evaluate` said.
      best: the least of those measured so far.
    """

    stage: str
    predicted: float
    measured: float
    best: float


class Searched(NamedTuple):
    """What a search found.

    Attributes:
      allocation: the best one; its `about` has what it loses by the table, `loss`, and
        `measured`.
      measured: what `evaluate` said of it.
      history: all that was tried, in order; some of it more than once, but measured once.
      evaluations: how often `evaluate` was called, by killed runs, too.
    """

    allocation: Allocation
    measured: float
    history: tuple[Tried, ...]
    evaluations: int

    def to_dict(self) -> dict[str, Any]:
        """What JSON holds."""
        return {
            "allocation": self.allocation.to_dict(),
            "measured": self.measured,
            "evaluations": self.evaluations,
            "history": [tried._asdict() for tried in self.history],
        }


class Evaluations:
    """What assignments of a table lose, measured once each.

    Args:
      problem: which leaves and levels there are.
      evaluate: called with an allocation; what it loses, inf where that is no number to hold.
      file: of lines of JSON that what is measured is added to, and that a killed search goes on
        from; None for none.

    Attributes:
      history: what was asked for, in order.

    Raises:
      ValueError: a file of other leaves or levels, or one that is damaged.
      OSError: it cannot be read or written; it is named.
    """

    def __init__(
        self, problem: Table, evaluate: Evaluate, file: str | os.PathLike[str] | None = None
    ):
        self._problem, self._evaluate = problem, evaluate
        self._file = None if file is None else pathlib.Path(file)
        self._known: dict[tuple[int, ...], float] = {}
        self.history: list[Tried] = []
        if self._file is not None:
            with naming(self._file):
                self._open(self._file)

    def __call__(self, chosen: Sequence[int], stage: str) -> float:
        """What an assignment loses.

        Raises:
          ValueError: `evaluate` returned NaN or -inf.
          TypeError: or no number.
        """
        key = tuple(map(int, chosen))
        if key not in self._known:
            found = self._evaluate(self._problem.allocation(key))
            if not isinstance(found, numbers.Real | jax.Array) or jax.numpy.ndim(found):
                raise TypeError(f"evaluate returned {found!r}; a loss, one number, would work")
            self._known[key] = float(found)
            if math.isnan(found) or found == -math.inf:
                raise ValueError(
                    f"evaluate returned {found} for {self._problem.sparsities(key)}; a number, or "
                    "inf for what is worst, would work"
                )
            self._keep({"chosen": key, "loss": self._known[key]})
        measured = self._known[key]
        best = min(measured, self.history[-1].best if self.history else math.inf)
        self.history.append(Tried(stage, self._problem.lost(key), measured, best))
        return measured

    def result(self, chosen: Sequence[int], by: str) -> Searched:
        """The search that ends in an assignment."""
        measured = self._known[tuple(chosen)]
        about = {"measured": measured} if math.isfinite(measured) else {}
        allocation = self._problem.allocation(chosen, by=by, **about)
        return Searched(allocation, measured, tuple(self.history), len(self._known))

    def _open(self, file: pathlib.Path) -> None:
        problem = self._problem
        levels = dict(zip(problem.paths, map(list, problem.levels), strict=True))
        head = {"format": FORMAT, "levels": levels}
        if not file.exists() or not file.read_bytes():
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(head) + "\n")
            return
        done, _, torn = file.read_bytes().rpartition(b"\n")
        try:
            lines = [parsed(line) for line in done.splitlines()]
            # Choices are by place, so that leaves in another order are others.
            if not lines or lines[0] != head or [*lines[0]["levels"]] != [*levels]:
                raise ValueError("it is of other leaves or levels, or of another order of them")
            for number, line in enumerate(lines[1:], 2):
                key, loss = self._read(f"line {number}", line)
                self._known[key] = loss
        except ValueError as error:
            raise ValueError(f"{file}: {error}; a file that is not there would work") from error
        if torn:  # by a kill
            with replacing(file) as mended:
                mended.write(done + b"\n")

    def _read(self, where: str, line: Any) -> tuple[tuple[int, ...], float]:
        """What a line says was measured."""
        if not isinstance(line, dict) or line.keys() != {"chosen", "loss"}:
            raise ValueError(f"{where}: {shorten(line)} has not just 'chosen' and 'loss'")
        chosen, loss = line["chosen"], line["loss"]
        sizes = [len(each) for each in self._problem.levels]
        if not isinstance(chosen, list) or len(chosen) != len(sizes):
            raise ValueError(f"{where}: 'chosen' is no list of {len(sizes)} levels' numbers")
        for k, size in zip(chosen, sizes, strict=True):
            whole(f"{where}: chosen", k, 0, size - 1)
        if type(loss) not in (int, float) or not loss > -math.inf:
            raise ValueError(f"{where}: 'loss' is {shorten(loss)}, no number")
        return tuple(chosen), float(loss)

    def _keep(self, line: dict[str, Any]) -> None:
        if self._file is not None:
            with naming(self._file), self._file.open("a") as file:
                file.write(json.dumps(line) + "\n")
