"""`LatencyTable`: times of single products on this device, measured once and kept in a file."""

import json
import math
import pathlib
import time
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from jaxsparse.allocation.costs.fingerprint import fingerprint
from jaxsparse.allocation.jsons import parsed
from jaxsparse.files import replacing
from jaxsparse.timing import Clock, Run, interleave, medians, ratios

# Programs that are compiled and timed together, and then saved.
BATCH = 8
# Seconds of calls in a row: how a network that serves finds the machine.
TURN = 2e-3
NOTHING, BESIDE = "nothing", "beside"
# Of milliseconds: what is kept in memory is what the file holds.
DIGITS = 6


class LatencyTable:
    """Milliseconds by what was measured, each once, on this device.

    A file holds them beside the fingerprint of what they hold for: device, processor and its
    instruction set, threads, XLA_FLAGS, the versions of jax, jaxlib and jaxsparse, and the clock.
    On another it is refused.

    Args:
      path: a JSON file, read if it is there, and written anew after every few measurements;
        None keeps them in memory.
      measure: whether what is lacking is measured; if not, it is an error.
      rounds: of every measurement, of which the median counts.
      clock: gives seconds.

    Attributes:
      entries: the milliseconds, those of a call that does nothing taken off.
      clock: as given.

    Raises:
      ValueError: a file of another machine, naming the fields that differ; one that is no
        table, or has times that are none.

    Example:
      >>> table = LatencyTable(rounds=3)
      >>> table.measure({"sum": lambda: lambda: jnp.ones(8).sum()})
      >>> table["sum"] >= 0, "product" in table
      (True, False)
    """

    def __init__(
        self,
        path: str | pathlib.Path | None = None,
        *,
        measure: bool = True,
        rounds: int = 25,
        clock: Clock = time.perf_counter,
    ):
        if rounds < 1:
            raise ValueError(f"LatencyTable: rounds={rounds}; from 1 on would work")
        self.path = None if path is None else pathlib.Path(path)
        self.measures, self._rounds, self.clock = measure, rounds, clock
        self.entries: dict[str, float] = {}
        if self.path is not None and self.path.exists():
            self.entries = _read(self.path, self.fingerprint)

    @property
    def fingerprint(self) -> dict[str, str | int]:
        """What the times hold for: see `fingerprint`, and the clock."""
        return fingerprint() | {"clock": getattr(self.clock, "__name__", type(self.clock).__name__)}

    def __contains__(self, name: str) -> bool:
        return name in self.entries

    def __getitem__(self, name: str) -> float:
        if name not in self.entries:
            where = "" if self.path is None else f" in {self.path}"
            raise KeyError(
                f"no time of {name!r}{where}; LatencyTable(..., measure=True) would measure it"
            )
        return self.entries[name]

    def measure(
        self,
        programs: Mapping[str, Callable[[], Run]],
        beside: tuple[str, Run] | None = None,
    ) -> None:
        """Measures what is not there yet, and saves it.

        Args:
          programs: by name a function that makes one to be timed. What has an attribute `turns`
            does so many times what the entry is of.
          beside: a program that is in the table already, and itself. It takes its turn in every
            round, and the others' times are taken relative to it: they are what they would have
            been when that was measured, whatever the machine is busy with by now.

        Raises:
          KeyError: something is lacking, and this table does not measure.
        """
        lacking = [name for name in programs if name not in self.entries]
        if lacking and not self.measures:
            self[lacking[0]]
        one = jax.jit(lambda x: x + 1)
        nothing = jnp.float32(0)
        for start in range(0, len(lacking), BATCH):
            names = lacking[start : start + BATCH]
            runs: dict[str, Run] = {name: programs[name]() for name in names}
            runs[NOTHING] = lambda: one(nothing)

            if beside is not None:
                runs[BESIDE] = beside[1]
            times = interleave(runs, self._rounds, turn=TURN, clock=self.clock)
            found = {name: 1e3 * seconds for name, seconds in medians(times).items()}
            if beside is None:
                self.entries[NOTHING] = round(found[NOTHING], DIGITS)
            else:
                whole = self[beside[0]] + self[NOTHING]
                found = {name: whole * ratio for name, ratio in ratios(times, BESIDE).items()}
            for name in names:
                beyond = max(found[name] - found[NOTHING], 0.0)
                self.entries[name] = round(beyond / getattr(runs[name], "turns", 1), DIGITS)
            self.save()

    def save(self) -> None:
        """Writes the file, if there is one: sorted, a line an entry.

        What another process has measured into it meanwhile stays there.
        """
        if self.path is None:
            return
        if self.path.exists():
            self.entries = _read(self.path, self.fingerprint) | self.entries
        rows = dict(sorted(self.entries.items()))
        text = json.dumps({"fingerprint": self.fingerprint, "milliseconds": rows}, indent=1)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(self.path) as file:
            file.write(text.encode() + b"\n")


def _read(path: pathlib.Path, here: dict[str, str | int]) -> dict[str, float]:
    try:
        found = parsed(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} is no table of latency: {error}") from error
    names = {"fingerprint", "milliseconds"}
    if not isinstance(found, dict) or not all(isinstance(found.get(n), dict) for n in names):
        raise ValueError(f"{path} is no table of latency: it needs {' and '.join(sorted(names))}")
    there = found["fingerprint"]
    differ = [
        f"{name} is {here.get(name)!r} here, {there.get(name)!r} there"
        for name in {**here, **there}
        if here.get(name) != there.get(name)
    ]
    if differ:
        raise ValueError(
            f"{path} was measured on another machine: {'; '.join(differ)}; another file, to be "
            "measured here, would work"
        )
    for name, time_ in found["milliseconds"].items():
        number = isinstance(time_, int | float) and not isinstance(time_, bool)
        if not number or not math.isfinite(time_) or time_ < 0:
            raise ValueError(f"{path}: {name!r} takes {time_!r}; milliseconds would work")
    if found["milliseconds"] and NOTHING not in found["milliseconds"]:
        raise ValueError(
            f"{path}: the time of {NOTHING!r}, a call that does nothing, is not there, and all "
            "others are beyond it; a file that is not there, to be measured, would work"
        )
    return {name: float(time_) for name, time_ in found["milliseconds"].items()}
