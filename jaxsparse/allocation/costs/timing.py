"""Times of compiled programs, measured in turn: what else the machine does meets all alike."""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax

Clock = Callable[[], float]
Run = Callable[[], Any]


def interleaved(
    runs: Mapping[str, Run],
    rounds: int,
    *,
    clock: Clock = time.perf_counter,
) -> dict[str, list[float]]:
    """Milliseconds of every run in every round; a round calls all of them, one after another.

    One round that is not counted comes first, for compilation; each begins one run later than
    the last, so that none has the same neighbour every time.

    Args:
      runs: by name a function whose results are arrays; they are waited for.
      rounds: how many are counted.
      clock: gives seconds; `time.process_time` counts those of this process alone.

    Example:
      >>> times = interleaved({"two": lambda: jax.numpy.ones(2)}, 3)
      >>> len(times["two"])
      3
    """
    found: dict[str, list[float]] = {name: [] for name in runs}
    order = list(runs)
    for counted in range(-1, rounds):
        order.append(order.pop(0))
        for name in order:
            start = clock()
            jax.block_until_ready(runs[name]())
            took = 1e3 * (clock() - start)
            if counted >= 0:
                found[name].append(took)
    return found


def medians(times: Mapping[str, list[float]]) -> dict[str, float]:
    """Of every run the median over the rounds."""
    return {name: statistics.median(found) for name, found in times.items()}


def ratios(times: Mapping[str, list[float]], base: str) -> dict[str, float]:
    """Of every run the median over the rounds of its time over the base's in the same round."""
    return {
        name: statistics.median(a / b for a, b in zip(found, times[base], strict=True))
        for name, found in times.items()
    }
