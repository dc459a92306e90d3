"""``report.html`` of a one-shot run."""

import json
from collections.abc import Mapping
from typing import Any

from experiments import figures
from experiments.html import Section, render
from experiments.oneshot import summary

_LOSS = (
    "Layer loss is the mean over layers of |XW - XV|² / |XW|² of weights W, pruned to V, and what "
    "they meet, X; by norms where no row of the run has XᵀX, without the products of different "
    "inputs. Minutes are those of pruning, compilation and what the loss is measured by included."
)


def build(report: Mapping[str, Any]) -> str:
    """The page of a run.

    Args:
      report: as report.json holds it.
    """
    sections = [
        Section("Dense and pruned", summary.stages(report), _LOSS),
        Section(
            "Perplexity against sparsity",
            figures.perplexities(points(report)),
            "Of the texts held out; dense is at 0.",
        ),
    ]
    if report["speed"]:
        tokens = report["config"]["generation"]["tokens"]
        sections += [
            Section(
                "Speed",
                summary.speeds(report),
                f"{tokens} tokens written after a prompt, one text at a time, on "
                f"{report['environment']['processor']}; all forms in turn in one process.",
            ),
            Section(
                "One text of each", "\n\n".join(f"{k}: {v}" for k, v in report["samples"].items())
            ),
        ]
    sections += [
        Section(
            "Machine and versions", [["", "this run"], *map(list, report["environment"].items())]
        ),
        Section("Config", json.dumps(report["config"], indent=2)),
    ]
    return render(summary.title(report), summary.lead(report), sections)


def points(report: Mapping[str, Any]) -> dict[str, dict[str, list[tuple]]]:
    """Corpus -> method -> (sparsity, perplexity), each method's from the dense model on."""
    found: dict[str, dict[str, list[tuple]]] = {}
    dense, *stages = report["rows"]
    for row in stages:
        label = f"{row['stage']}, {report['pattern']}"
        for name, perplexity in row["perplexity"].items():
            first = dense["perplexity"][name]
            if perplexity is not None and first is not None:
                line = [(0.0, first), (row["sparsity"], perplexity)]
                found.setdefault(name, {})[label] = line
    return found
