"""What movement sparsity promises of a pretrained transformer, and how it is measured.

For every seed a dense MiniLM is fine-tuned once, and all arms of ``reviews_movement`` start
from it and learn from it.
"""

import pathlib
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from experiments import config as configs
from experiments import outcome, train

_CONFIGS = pathlib.Path(__file__).parent / "configs"
DENSE, ARMS_OF = "reviews_dense.py", "reviews_movement.py"
# Those that are compared with dense, and by how much they may fall short of it.
ARMS = ("light", "light_blocks", "strong", "strong_blocks", "magnitude")
EXTREME = ("extreme_blocks", "extreme_magnitude")
BATCHES = ("1", "32")


class Bound(NamedTuple):
    """A number that an arm must reach.

    Attributes:
      arm: which.
      what: the measurement: ``linear_left``, ``linear_bytes``, ``auc``, ``f1`` (points over
        the dense model's), or ``speedup`` of its smallest form at both batches.
      least: whether the number is the least that will do; otherwise it is the most.
      number: the bound.
    """

    arm: str
    what: str
    least: bool
    number: float

    def holds(self, found: float) -> bool:
        """Whether a measurement is within the bound."""
        return found >= self.number if self.least else found <= self.number

    def __str__(self) -> str:
        return f"{self.arm}: {self.what} {'>=' if self.least else '<='} {self.number:g}"


BOUNDS = tuple(
    bound
    for arm, left, size, auc, f1, speed in (
        ("light", 0.40, 0.45, -0.5, -1.0, 2.2),
        ("light_blocks", 0.40, 0.45, -0.5, -1.0, 3.5),
        ("strong", 0.22, 0.25, -1.0, -2.0, 3.2),
        ("strong_blocks", 0.22, 0.25, -1.0, -2.0, 5.5),
    )
    for bound in (
        Bound(arm, "linear_left", False, left),
        Bound(arm, "linear_bytes", False, size),
        Bound(arm, "auc", True, auc),
        Bound(arm, "f1", True, f1),
        Bound(arm, "speedup", True, speed),
    )
)
RIVALS = (("strong_blocks", "magnitude"), ("extreme_blocks", "extreme_magnitude"))


def measure(
    seeds: Sequence[int], folder: pathlib.Path, overrides: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Runs the dense model and every arm at every seed; what is finished is only read.

    Args:
      seeds: one dense run each.
      folder: of the runs, ``<arm>/<seed>`` in it.
      overrides: dotted key -> value, in all runs.

    Returns:
      Per arm and seed the held-out AUC, macro F1 and accuracy, what is left of the linear
      weights, their bytes and those of all weights as shares of dense, times faster than
      dense by form and batch; for every bound its measurement and whether it holds; and
      movement's lead over magnitude.
    """
    reports: dict[str, list[dict]] = {arm: [] for arm in ("dense", *ARMS, *EXTREME)}
    for seed in seeds:
        dense = folder / "dense" / str(seed)
        options = {**(overrides or {}), "seed": seed}
        reports["dense"].append(_run(DENSE, options, dense))
        options |= {"init_from": str(dense), "distillation.teacher": str(dense)}
        for arm in (*ARMS, *EXTREME):
            place = folder / arm / str(seed)
            reports[arm].append(_run(f"{ARMS_OF}:{arm}", options, place))
    arms = {arm: [_row(report) for report in found] for arm, found in reports.items()}
    return {
        "seeds": list(seeds),
        "test_examples": reports["dense"][0]["test_examples"],
        "steps": {arm: found[0]["steps"] for arm, found in reports.items()},
        "arms": arms,
        "bounds": [
            {"bound": str(bound), "found": found, "holds": bound.holds(found)}
            for bound in BOUNDS
            for found in [_found(arms, bound)]
        ],
        "rivals": [
            {
                "movement": movement,
                "magnitude": magnitude,
                **{
                    f"{name}_points": 100
                    * (_mean(arms[movement], name) - _mean(arms[magnitude], name))
                    for name in ("auc", "f1")
                },
                "linear_left": [_mean(arms[arm], "linear_left") for arm in (movement, magnitude)],
            }
            for movement, magnitude in RIVALS
        ],
        "command": f"python -m experiments.sweep --claim movement --seeds {len(seeds)}",
        "environment": outcome.environment(),
    }


def _run(file: str, options: Mapping[str, Any], place: pathlib.Path) -> dict[str, Any]:
    return train.run(configs.load(str(_CONFIGS / file), options), str(place))


def _row(report: Mapping[str, Any]) -> dict[str, Any]:
    row = {name: report[f"sparse_{name}"] for name in ("auc", "f1", "accuracy")}
    row["seconds"] = report["seconds"]
    if "linear_left" not in report:
        return row
    row["linear_left"] = report["linear_left"]
    for key in ("linear_bytes", "model_bytes", "linear_bytes_16", "model_bytes_16"):
        row[key] = report[key]["smallest"] / report[key]["dense"]
    for key in ("speedup", "cpu_speedup"):
        row[key] = {batch: report["forms"][batch][key] for batch in BATCHES}
    row["kept"] = {group["group"]: len(group["kept"]) for group in report["structure"]}
    return row


def _mean(rows: Sequence[Mapping[str, Any]], name: str) -> float:
    return statistics.fmean(row[name] for row in rows)


def _found(arms: Mapping[str, Sequence[Mapping[str, Any]]], bound: Bound) -> float:
    rows = arms[bound.arm]
    if bound.what in ("auc", "f1"):
        return 100 * (_mean(rows, bound.what) - _mean(arms["dense"], bound.what))
    if bound.what == "speedup":
        return min(_speedup(rows, batch) for batch in BATCHES)
    return _mean(rows, bound.what)


def _speedup(rows: Sequence[Mapping[str, Any]], batch: str) -> float:
    """Times faster than dense, of the smallest form that an arm has; the mean over seeds."""
    forms = [row["speedup"][batch] for row in rows]
    return statistics.fmean(form.get("packed", form["shrunk"]) for form in forms)


def as_markdown(outcome: Mapping[str, Any]) -> str:
    """A table of the arms, the bounds with their verdicts, and movement against magnitude."""
    lines = [
        "MiniLM on the clothing reviews, pruned by movement sparsity: 32x32 blocks in attention, "
        "neurons in the feed-forward parts.",
        "",
        "| arm | AUC | macro F1 | accuracy | linear weights left | their bytes | all bytes "
        "| times faster, batch 1 | batch 32 |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for arm, rows in outcome["arms"].items():
        cells = [arm, *(_spread(rows, name) for name in ("auc", "f1", "accuracy"))]
        if "linear_left" in rows[0]:
            cells += [f"{_mean(rows, 'linear_left'):.1%}"]
            cells += [f"{_mean(rows, key):.2f}x" for key in ("linear_bytes", "model_bytes")]
            cells += [f"{_speedup(rows, batch):.2f}" for batch in BATCHES]
        else:
            cells += ["100 %", "1x", "1x", "1", "1"]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "| claimed | found | |", "|---|---|---|"]
    lines += [
        f"| {row['bound']} | {row['found']:.3f} | {'holds' if row['holds'] else 'does not hold'} |"
        for row in outcome["bounds"]
    ]
    lines += [""]
    for row in outcome["rivals"]:
        left = " and ".join(f"{share:.1%}" for share in row["linear_left"])
        lines.append(
            f"{row['movement']} against {row['magnitude']} ({left} left): AUC "
            f"{row['auc_points']:+.2f}, F1 {row['f1_points']:+.2f} points."
        )
    lines += [
        "",
        f"`{outcome['command']}`, {outcome['test_examples']} held-out reviews, means of "
        f"{len(outcome['seeds'])} seeds; of the smallest form in JAX, against jitted dense; "
        + ", ".join(f"{key} {value}" for key, value in outcome["environment"].items()),
    ]
    return "\n".join(lines) + "\n"


def _spread(rows: Sequence[Mapping[str, Any]], name: str) -> str:
    each = " ".join(f"{100 * row[name]:.2f}" for row in rows)
    return f"{100 * _mean(rows, name):.2f} ({each})"
