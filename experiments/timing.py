"""Interleaved timing: what is compared runs in turn, in one process, and medians are quoted."""

import json
import os
import pathlib
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping
from datetime import date
from typing import Any, TypeVar

import jax

Name = TypeVar("Name")

RESULTS = pathlib.Path(__file__).parent / "bench" / "results"


def interleave(
    runs: Mapping[Name, Callable[[], Any]],
    rounds: int,
    turn: float = 0.0,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[Name, list[float]]:
    """Returns seconds of every run in every round; each round runs all of them in turn.

    A run must end in finished arrays. A turn is one call, so that each finds the caches
    as its neighbour left them; or, with `turn` seconds, as many calls in a row as fill
    them, and counted is their mean: what the caches keep from call to call stays. One
    round that is not counted comes first, and each round begins one run later than the
    last, so that none has the same neighbour every time. `clock` gives the seconds:
    `time.process_time` counts those of all threads of this process alone.
    """
    seconds: dict[Name, list[float]] = {name: [] for name in runs}
    calls = dict.fromkeys(runs, 1)
    order = list(runs)
    for counted in range(-1, rounds):
        order.append(order.pop(0))
        for name in order:
            start = clock()
            for _ in range(calls[name]):
                jax.block_until_ready(runs[name]())
            took = (clock() - start) / calls[name]
            if counted >= 0:
                seconds[name].append(took)
            else:
                calls[name] = max(1, int(turn / took))
    return seconds


def ratios(seconds: Mapping[str, list[float]], base: str) -> dict[str, float]:
    """Returns the median over rounds of each run's time over the base's in the same round."""
    return {
        name: statistics.median(a / b for a, b in zip(times, seconds[base], strict=True))
        for name, times in seconds.items()
    }


def machine() -> dict[str, Any]:
    """Returns what a figure must be read with: device, cores, versions, date, commit."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        capture_output=True,
        text=True,
        cwd=RESULTS.parent,
        check=False,
    )
    return {
        "date": date.today().isoformat(),
        "commit": commit.stdout.strip(),
        "device": jax.devices()[0].device_kind,
        "processor": processor(),
        "cores": cores(),
        "python": platform.python_version(),
        "jax": jax.__version__,
    }


def write(name: str, result: Mapping[str, Any]) -> pathlib.Path:
    """Writes results/NAME.json together with the machine's description, a line a row."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(_lines(dict(result) | {"machine": machine()}))
    return path


def _lines(result: Mapping[str, Any]) -> str:
    """JSON whose long lists are a line an item, so that one row changed is one line changed."""
    fields = []
    for key, value in result.items():
        text = json.dumps(value)
        if isinstance(value, list) and value:
            text = "[\n" + ",\n".join(json.dumps(item) for item in value) + "\n]"
        fields.append(f"{json.dumps(key)}: {text}")
    return "{\n" + ",\n".join(fields) + "\n}\n"


def cores() -> int | None:
    """Returns how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count()


def processor() -> str:
    """Returns the processor's name."""
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if "model name" in line)
    except (OSError, StopIteration):
        return platform.processor()
