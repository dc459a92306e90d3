"""What searches of widths promise on real images, and how it is measured over seeds.

Minutes of an arm and seed are estimates for two idle cores, half of processor seconds: a step of
32 images was measured as 0.27, an evaluation of 500 as 0.85; the table of latency and what
compiling takes are guesses.
"""

import itertools
import pathlib
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from experiments import outcome, train, workdir
from experiments.registry import near_misses
from experiments.search import config as configs
from experiments.search import run as runs

_CONFIGS = pathlib.Path(__file__).parent / "configs"
# By method the minutes of a search at half of the cost.
MINUTES = {"uniform": 0.0, "sensitivity": 0.8, "spdy": 0.8, "netadapt": 2.5, "amc": 2.5}
# Of the dense model; of tuning, compiling and measuring; and once, of the table of latency.
DENSE_MINUTES, REST_MINUTES, TABLE_MINUTES = 3.0, 1.0, 15.0
SEARCHES = tuple(method for method in MINUTES if method != "uniform")
BUDGETS = {
    "flops 50 %": {"budget.of": "flops", "budget.share": 0.5},
    "flops 30 %": {"budget.of": "flops", "budget.share": 0.3},
    "latency 50 %": {"budget.of": "latency", "budget.share": 0.5},
    "latency 30 %": {"budget.of": "latency", "budget.share": 0.3},
    "latency of width 0.75": {"budget.of": "latency", "budget.width": 0.75},
}
_WIDTH = "latency of width 0.75"


class Arm(NamedTuple):
    """One run a seed.

    Attributes:
      method, budget: of `MINUTES` and `BUDGETS`.
    """

    method: str
    budget: str

    @property
    def minutes(self) -> float:
        """That a seed is estimated to take; narrower networks take more iterations."""
        return MINUTES[self.method] * (1.4 if "30" in self.budget else 1) + REST_MINUTES


ARMS = {
    f"{method}, {budget}": Arm(method, budget)
    for budget, method in itertools.product(BUDGETS, MINUTES)
}


def estimate(seeds: int, arms: Sequence[str] = tuple(ARMS)) -> float:
    """Hours that arms take on two idle cores.

    Raises:
      ValueError: an unknown arm, with the near misses.
    """
    _check(arms)
    each = DENSE_MINUTES + sum(ARMS[arm].minutes for arm in arms)
    return (TABLE_MINUTES + seeds * each) / 60


def measure(
    seeds: Sequence[int], folder: pathlib.Path, arms: Sequence[str] = tuple(ARMS)
) -> dict[str, Any]:
    """Runs every arm at every seed, each from that seed's dense model; resumes.

    Args:
      seeds: of dense model, data order and search.
      folder: of the runs, ``dense/<seed>`` and ``<arm>/<seed>`` in it, and of the one table of
        latency that all share.
      arms: some of `ARMS`.

    Returns:
      Per arm its numbers by seed; for every bound what was found and whether it holds, None
      where an arm that it needs did not run.

    Raises:
      ValueError: an unknown arm, with the near misses.
    """
    _check(arms)
    found: dict[str, dict[str, list[Any]]] = {arm: {} for arm in arms}
    for seed, name in itertools.product(seeds, arms):
        row = _row(_report(ARMS[name], name, seed, folder))
        for key, value in row.items():
            found[name].setdefault(key, []).append(value)
    return {
        "seeds": list(seeds),
        "arms": found,
        "bounds": _bounds(found),
        "command": f"python -m experiments.sweep --claim search --seeds {len(seeds)}",
        "environment": outcome.environment(),
    }


def _check(arms: Sequence[str]) -> None:
    for arm in arms:
        if arm not in ARMS:
            raise ValueError(f"unknown arm {arm!r}{near_misses(arm, ARMS)}")


def _report(arm: Arm, name: str, seed: int, folder: pathlib.Path) -> dict[str, Any]:
    dense = folder / "dense" / str(seed)
    options = {
        "seed": seed,
        "init_from": str(dense),
        "latency.table": str(folder / "latency.json"),
        **BUDGETS[arm.budget],
    }
    config = configs.load(str(_CONFIGS / f"mnist_{arm.method}.py"), options)
    if not workdir.finished(dense):
        train.run(runs.dense_config(config), str(dense), html=False)
    place = name.replace(", ", "_").replace(" %", "").replace(" ", "_")
    return runs.run(config, str(folder / place / str(seed)))


def _row(report: Mapping[str, Any]) -> dict[str, Any]:
    dense, searched, tuned = report["rows"]
    return {
        "dense": dense["accuracy"],
        "untuned": searched["accuracy"],
        "accuracy": tuned["accuracy"],
        "flops": report["flops"]["found"] / report["flops"]["dense"],
        "predicted_ms": report["speed"]["predicted"]["found_ms"],
        "measured_ms": report["speed"]["predicted"]["measured_ms"],
        "error": report["speed"]["predicted"]["error"],
        "speedup": report["speed"]["speedup"],
        "minutes": report["search_seconds"] / 60,
    }


def _bounds(arms: Mapping[str, Mapping[str, Sequence[Any]]]) -> list[dict[str, Any]]:
    """What was asked for, with what was found."""
    mean = {name: {k: statistics.fmean(v) for k, v in row.items()} for name, row in arms.items()}

    def of(method: str, budget: str) -> Mapping[str, float] | None:
        return mean.get(f"{method}, {budget}")

    def lost(row: Mapping[str, float]) -> float:
        return 100 * (row["dense"] - row["accuracy"])

    bounds = []

    def add(text: str, found: float | None, holds: bool | None) -> None:
        bounds.append({"bound": text, "found": found, "holds": holds})

    for budget, method in itertools.product(("latency 50 %", "latency 30 %"), SEARCHES):
        ours, plain = of(method, budget), of("uniform", budget)
        text = f"{budget}: {method} loses at most half the points that uniform loses"
        if ours is None or plain is None:
            add(text, None, None)
        else:
            add(text, lost(ours) - lost(plain) / 2, lost(ours) <= lost(plain) / 2)
    for budget in BUDGETS:
        ours, other = of("spdy", budget), of("amc", budget)
        for text, key in (("is at least as accurate as amc", 0), ("takes a tenth of its time", 1)):
            text = f"{budget}: spdy {text}"
            if ours is None or other is None:
                add(text, None, None)
            elif key:
                add(
                    text,
                    ours["minutes"] / other["minutes"],
                    10 * ours["minutes"] <= other["minutes"],
                )
            else:
                points = 100 * (ours["accuracy"] - other["accuracy"])
                add(text, points, points >= 0)
    errors = [abs(error) for row in arms.values() for error in row["error"]]
    worst = max(errors, default=None)
    add(
        "predicted latency within 15 % of measured", worst, None if worst is None else worst <= 0.15
    )
    width = of("uniform", _WIDTH)
    cut = None if width is None else 1 / width["flops"]
    text = "width 0.75 cuts the FLOPs by 1.75, within 0.1"
    add(text, cut, None if cut is None else abs(cut - 1.75) <= 0.1)
    searched = [row for method in SEARCHES if (row := of(method, _WIDTH)) is not None]
    best = max((100 * row["accuracy"] for row in searched), default=None)
    gain = None if best is None or width is None else best - 100 * width["accuracy"]
    text = "the best search is more accurate than width 0.75 at its latency"
    add(text, gain, None if gain is None else gain > 0)
    return bounds


def as_markdown(outcome: Mapping[str, Any]) -> str:
    """A table of the arms, and the bounds with their verdicts."""
    lines = ["MobileNetV1 on 10,000 images of MNIST, narrowed, then tuned alike.", ""]
    lines += [
        "| arm | accuracy, mean | per seed | untuned | FLOPs | predicted ms | measured ms "
        "| times faster | search minutes |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    dense = {
        seed: value for row in outcome["arms"].values() for seed, value in _dense(outcome, row)
    }
    if dense:
        each = " ".join(f"{100 * value:.2f}" for value in dense.values())
        mean = f"{100 * statistics.fmean(dense.values()):.2f} %"
        lines.append(f"| dense | {mean} | {each} | - | 100.0 % | - | - | 1.00 | - |")
    for name, row in outcome["arms"].items():
        means = {key: statistics.fmean(values) for key, values in row.items()}
        cells = (
            name,
            f"{100 * means['accuracy']:.2f} %",
            " ".join(f"{100 * value:.2f}" for value in row["accuracy"]),
            f"{100 * means['untuned']:.2f} %",
            f"{100 * means['flops']:.1f} %",
            *(f"{means[key]:.3f}" for key in ("predicted_ms", "measured_ms")),
            f"{means['speedup']:.2f}",
            f"{means['minutes']:.2f}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "| claimed | found | |", "|---|---|---|"]
    verdicts = {True: "holds", False: "does not hold", None: "not run"}
    for row in outcome["bounds"]:
        found = "-" if row["found"] is None else f"{row['found']:.2f}"
        lines.append(f"| {row['bound']} | {found} | {verdicts[row['holds']]} |")
    lines += [
        "",
        f"`{outcome['command']}`, means of {len(outcome['seeds'])} seeds and each; "
        + ", ".join(f"{key} {value}" for key, value in outcome["environment"].items()),
    ]
    return "\n".join(lines) + "\n"


def _dense(outcome: Mapping[str, Any], row: Mapping[str, Sequence[float]]) -> list[tuple]:
    return list(zip(outcome["seeds"], row["dense"], strict=True))
