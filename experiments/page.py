"""What ``report.html`` shows of a run, with a sentence on how to read each part."""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments import figures, permutation, summary
from experiments.html import Section, render

_LOSSES = {
    "classification": "cross-entropy, nats",
    "binary": "cross-entropy, nats",
    "regression": "half the squared error",
}


def build(
    report: Mapping[str, Any],
    history: Sequence[Mapping[str, float]],
    masks: Mapping[str, np.ndarray],
    leaves: str,
    folder: pathlib.Path,
) -> str:
    """The page of a run.

    Args:
      report: as ``report.json`` holds it.
      history: records of ``metrics.jsonl``.
      masks: path -> mask; empty where the model is dense.
      leaves: the table of all leaves, as text.
      folder: of the run, for the picture that a permutation leaves there.
    """
    begin, metric, held_out = report["dense_until"], report["headline"], report["test_examples"]
    sections = [
        Section("Dense against sparse", summary.rows(report), " ".join(summary.notes(report))),
        Section(
            "Loss",
            figures.losses(history, _LOSSES[report["task"]], begin),
            f"The mean loss of single training batches and of all {held_out:,} held-out "
            "examples, of the model with the masks that are in force at the step.",
        ),
        Section(
            f"Held-out {metric} and sparsity",
            figures.curves(history, metric, begin),
            f"The {metric} on {held_out:,} examples that are never trained on (left axis), and "
            "the share of zeros in the leaves that are pruned (right axis)."
            + (f" One example is {100 / held_out:.2f} points." if metric == "accuracy" else ""),
        ),
    ]
    if "latency" in report:
        sections.append(_latency(report))
    if "structure" in report:
        sections += _structure(report, history)
    if masks:
        sections.append(
            Section(
                "Density of the pruned leaves",
                figures.densities([leaf for leaf in report["leaves"] if leaf["path"] in masks]),
                "The share of each pruned leaf that its mask keeps at the end of the run.",
            )
        )
        some = f"the first {figures.MASKS_SHOWN} of {len(masks)} " if _many(masks) else ""
        sections.append(
            Section(
                "Masks",
                figures.mask_pictures(masks),
                f"Where {some}masks keep a weight (dark) at the end of the run; inputs run "
                "downwards, outputs to the right, and large masks are averaged.",
            )
        )
    if "permutation" in report:
        sections += _permutation(report, folder)
    sections += [
        Section("Every leaf", leaves),
        Section(
            "Machine and versions", [["", "this run"], *map(list, report["environment"].items())]
        ),
        Section("Config", json.dumps(report["config"], indent=2)),
    ]
    return render(summary.title(report), summary.lead(report), sections)


def _many(masks: Mapping[str, np.ndarray]) -> bool:
    return len(masks) > figures.MASKS_SHOWN


def _latency(report: Mapping[str, Any]) -> Section:
    found = report["latency"]
    spread = {"dense": found["dense_percentiles_ms"], "packed": found["sparse_percentiles_ms"]}
    text = (
        f"Forward passes over the same {report['latency_examples']:,} held-out examples on "
        f"{report['environment']['processor']}: the masked model with its zeros stored and "
        "multiplied (dense) and the same model packed, one call of each in turn, "
        f"{found['rounds']} times in one process; boxes are quartiles, whiskers the 5th and "
        "95th percentile."
    )
    return Section("Latency", figures.latencies(spread), text)


def _structure(report: Mapping[str, Any], history: Sequence[Mapping[str, float]]) -> list[Section]:
    begin, end, steps = report["dense_until"], report["structure_at"], report["steps"]
    phases = [
        ("dense", 0, begin),
        ("sparsification", begin, end),
        ("structured masking, then fine-tuning", end, steps),
    ]
    rules = report["config"]["rules"]
    groups = [["group", "kept", "of", "kind", "which"]]
    for row in report["structure"]:
        which = ", ".join(map(str, row["kept"])) if row["kind"] == "heads" else ""
        counts = f"{len(row['kept']):,}", f"{row['units']:,}"
        groups.append([row["group"], *counts, row["kind"], which])
    return [
        Section(
            "Lifecycle",
            figures.lifecycle(history, report["headline"], report["leaves"], rules, phases),
            f"Up to step {end:,} masks come and go; there they are made those of whole heads and "
            "neurons, and what is left is fine-tuned under masks that stay.",
        ),
        Section(
            "Forms of the model",
            summary.forms(report),
            f"Milliseconds a forward pass, medians; all forms in turn in one process, on "
            f"{report['environment']['processor']}. Dense multiplies the zeros, shrunk is without "
            "the heads and neurons that are gone, packed stores what is sparse in the rest in "
            "blocks.",
        ),
        Section("Heads and neurons", groups, "What is left of each group of the channel graph."),
    ]


def _permutation(report: Mapping[str, Any], folder: pathlib.Path) -> list[Section]:
    sections = [
        Section(
            "Magnitude that the permutation keeps",
            permutation.table(report["permutation"]),
            "For every group of channels, the magnitude that n:m masks keep in the plain order, "
            "in the order found, and at most.",
        )
    ]
    if (picture := folder / permutation.PICTURE).exists():
        sections.append(
            Section(
                "Channels",
                picture.read_bytes(),
                "The program of the model: which axes of which weights are the same channels.",
            )
        )
    return sections
