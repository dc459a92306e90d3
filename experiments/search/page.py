"""``report.html`` of a search."""

import json
from collections.abc import Mapping
from typing import Any

from experiments import figures
from experiments.html import Section, render
from experiments.search import figures as tried
from experiments.search import summary


def build(report: Mapping[str, Any]) -> str:
    """The page of a run.

    Args:
      report: as report.json holds it.
    """
    sections = [
        Section("Dense, searched and tuned", summary.stages(report)),
        Section(
            "Speed",
            summary.speeds(report),
            f"Medians of {report['speed']['rounds']} forward passes, both models in turn in one "
            f"process, on {report['environment']['processor']}; the shrunk one is without the "
            "channels that are gone.",
        ),
        Section(
            "Widths",
            figures.widths(report["groups"]),
            "Channels that each group keeps, of those it has, in the order of the model.",
        ),
        Section("Every group", summary.groups(report)),
        *(Section(*each) for each in tried.of(report["method"], report["history"])),
        Section(
            "Machine and versions", [["", "this run"], *map(list, report["environment"].items())]
        ),
        Section("Config", json.dumps(report["config"], indent=2)),
    ]
    return render(summary.title(report), summary.lead(report), sections)
