"""What the recipes promise about accuracy, as data, and how it is measured over seeds."""

import dataclasses
import pathlib
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from experiments import config as configs
from experiments import outcome, train
from experiments.registry import near_misses

_CONFIGS = pathlib.Path(__file__).parent / "configs"


@dataclasses.dataclass(frozen=True)
class Arm:
    """One side of a comparison.

    Attributes:
      config: name of a file in ``configs/``.
      overrides: dotted key -> value.
    """

    config: str
    overrides: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Claim:
    """A difference in mean held-out accuracy between two arms.

    Attributes:
      text: the claim in words, with the published numbers if there are any.
      arms: name -> arm; all of them are reported.
      better: the arm whose accuracy comes first in the difference.
      worse: the arm that is taken from it.
      least: the smallest difference, in percentage points, for which the claim holds.
    """

    text: str
    arms: Mapping[str, Arm]
    better: str
    worse: str
    least: float


_FULL_RATE = {"learning_rate.rewind": 1.0}
_UNIFORM = {**_FULL_RATE, "distribution": "uniform"}
_ERK = {**_FULL_RATE, "distribution": "erk"}

CLAIMS = {
    "blocks": Claim(
        text="At 90 % in 4x16 blocks the model is within 1.0 point of dense.",
        arms={
            "blocks": Arm("digits_block"),
            "dense": Arm("digits_dense"),
        },
        better="blocks",
        worse="dense",
        least=-1.0,
    ),
    "iterative": Claim(
        text=(
            "At 98 % unstructured on an MLP 64-300-100-10, iterative pruning with a rewound "
            "learning rate beats one-shot pruning with as many fine-tuning steps at the same "
            "rate by more than 15 points (published: 95.0 against 60.0). One global threshold "
            "for all layers; the other arms show what the distribution over layers and the "
            "rate change."
        ),
        arms={
            "iterative": Arm("digits_iterative"),
            "one-shot": Arm("digits_one_shot"),
            "one-shot, rate x1": Arm("digits_one_shot", _FULL_RATE),
            "iterative, uniform, rate x1": Arm("digits_iterative", _UNIFORM),
            "one-shot, uniform, rate x1": Arm("digits_one_shot", _UNIFORM),
            "iterative, erk, rate x1": Arm("digits_iterative", _ERK),
            "one-shot, erk, rate x1": Arm("digits_one_shot", _ERK),
        },
        better="iterative",
        worse="one-shot",
        least=15.0,
    ),
}


def measure(name: str, seeds: Sequence[int], folder: pathlib.Path) -> dict[str, Any]:
    """Runs every arm of a claim at every seed.

    Returns:
      The claim, per arm its overrides, learning rate, steps, and per seed the held-out
      accuracies and sparsity; the difference and whether the claim holds.

    Raises:
      ValueError: an unknown claim.
    """
    if name not in CLAIMS:
        raise ValueError(f"unknown claim {name!r}{near_misses(name, CLAIMS)}")
    claim, arms = CLAIMS[name], {}
    for label, arm in claim.arms.items():
        reports = []
        for seed in seeds:
            file = str(_CONFIGS / f"{arm.config}.py")
            config = configs.load(file, {**arm.overrides, "seed": seed})
            reports.append(train.run(config, str(folder / name / label / str(seed)), html=False))
        arms[label] = {
            "config": arm.config,
            "overrides": dict(arm.overrides),
            "steps": reports[0]["steps"],
            "learning_rate": reports[0]["config"]["learning_rate"],
            "sparsity": [report["sparsity"] for report in reports],
            "before_pruning": [report.get("dense_accuracy") for report in reports],
            "accuracy": [report["sparse_accuracy"] for report in reports],
        }
    means = {label: statistics.fmean(arm["accuracy"]) for label, arm in arms.items()}
    difference = 100 * (means[claim.better] - means[claim.worse])
    return {
        "claim": claim.text,
        "seeds": list(seeds),
        "test_examples": reports[0]["test_examples"],
        "arms": arms,
        "difference": f"{claim.better} - {claim.worse}",
        "difference_points": difference,
        "least_points": claim.least,
        "holds": difference >= claim.least,
        "command": f"python -m experiments.sweep --claim {name} --seeds {len(seeds)}",
        "environment": outcome.environment(),
    }


def as_markdown(outcome: Mapping[str, Any]) -> str:
    """A table of the arms, the verdict, and what the numbers depend on."""
    lines = [outcome["claim"], ""]
    lines += ["| arm | accuracy, mean | per seed | before pruning | sparsity | steps |"]
    lines += ["|---|---|---|---|---|---|"]
    for label, arm in outcome["arms"].items():
        each = " ".join(f"{100 * value:.2f}" for value in arm["accuracy"])
        before = [value for value in arm["before_pruning"] if value is not None]
        cells = (
            label,
            f"{100 * statistics.fmean(arm['accuracy']):.2f} %",
            each,
            f"{100 * statistics.fmean(before):.2f} %" if before else "-",
            f"{statistics.fmean(arm['sparsity']):.2%}",
            str(arm["steps"]),
        )
        lines.append(f"| {' | '.join(cells)} |")
    verdict = "holds" if outcome["holds"] else "does not hold"
    lines += [
        "",
        f"{outcome['difference']}: {outcome['difference_points']:+.2f} points; at least "
        f"{outcome['least_points']:+.1f} was claimed: it {verdict}.",
        "",
        f"`{outcome['command']}`, {outcome['test_examples']} held-out examples; "
        + ", ".join(f"{key} {value}" for key, value in outcome["environment"].items()),
    ]
    return "\n".join(lines) + "\n"
