"""Times of compiled programs, measured in turn: what else the machine does meets all alike."""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax

Clock = Callable[[], float]
Run = Callable[[], Any]
TRIES = 5
Name = TypeVar("Name")


def interleave(
    runs: Mapping[Name, Run],
    rounds: int,
    *,
    turn: float = 0.0,
    clock: Clock = time.perf_counter,
) -> dict[Name, list[float]]:
    """Seconds of every run in every round; a round calls all of them, one after another.

    All are compiled first. Each round begins one run later than the last, so that none has the
    same neighbour every time.

    Args:
      runs: by name a function whose results are arrays; they are waited for.
      rounds: how many are counted.
      turn: seconds that a run's turn fills with calls in a row, of which the mean counts: caches
        then hold what one call leaves to the next. 0 is one call.
      clock: gives seconds; `time.process_time` counts those of this process alone.

    Example:
      >>> times = interleave({"two": lambda: jax.numpy.ones(2)}, 3)
      >>> len(times["two"])
      3
    """
    found: dict[Name, list[float]] = {name: [] for name in runs}
    calls = dict.fromkeys(runs, 1)
    order = list(runs)
    for counted in range(-1, rounds):
        order.append(order.pop(0))
        for name in order:
            if counted < 0:
                calls[name] = _calls(runs[name], turn)
                continue
            start = clock()
            for _ in range(calls[name]):
                jax.block_until_ready(runs[name]())
            found[name].append((clock() - start) / calls[name])
    return found


def _calls(run: Run, turn: float) -> int:
    """How many calls fill a turn."""
    jax.block_until_ready(run())  # compiles
    return max(1, round(turn / quickest(run))) if turn else 1


def quickest(run: Run) -> float:
    """Seconds of the quickest of a few calls: what else the machine does only adds to them."""
    found = []
    for _ in range(TRIES):
        start = time.perf_counter()
        jax.block_until_ready(run())
        found.append(time.perf_counter() - start)
    return min(found)


def medians(times: Mapping[Name, list[float]]) -> dict[Name, float]:
    """Of every run the median over the rounds."""
    return {name: statistics.median(found) for name, found in times.items()}


def ratios(times: Mapping[Name, list[float]], base: Name) -> dict[Name, float]:
    """Of every run the median over the rounds of its time over the base's in the same round."""
    return {
        name: statistics.median(a / b for a, b in zip(found, times[base], strict=True))
        for name, found in times.items()
    }
