"""``report.html`` and the tables of the EIE report."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.eie import figures
from experiments.html import Section, render

_DEPTH = 8  # of the queues that the paper builds
Rows = Sequence[Sequence[str]]


def build(report: Mapping[str, Any]) -> str:
    """The page.

    Args:
      report: as report.json holds it, with numbers for keys by depth.
    """
    found, pes, own = report["layers"], report["pes"], report["trained"]
    mean = math.exp(sum(math.log(row["speedup"]) for row in found) / len(found))
    sections = [
        Section(
            "Published layers",
            layers(report),
            f"Shapes, densities and speed-ups over a CPU at batch 1 are the paper's Table III, "
            f"the geometric mean of the speed-ups is {mean:.1f}; all right of them is counted on "
            f"{pes} elements at 800 MHz. Balance is the share of all elements' cycles that read "
            "an entry. Weights and active inputs are drawn at random: a trained layer's are not.",
        ),
        Section(
            "Load balance against queue depth",
            figures.balance(found, report["depths"]),
            f"Queues let an element that is done wait for none but the slowest; the paper builds "
            f"{_DEPTH} (dashed). Layers of few weights a column and element balance worst.",
        ),
        Section(
            "Padding against elements",
            figures.padding(found),
            "The expected number. More elements share a column, so that runs of zeros in each "
            "are shorter ones that begin anew: fewer reach 16, the length that takes a filler.",
        ),
        Section("Storage", storage(report), "Of all inputs, read or not; dense is float32."),
        Section("Storage by part", figures.storage(found), "The code book is 256 bits a layer."),
        Section(
            "Trained layers",
            trained(report),
            f"{own['data']}: accuracy {own['accuracy']:.2%} with the weights as trained, "
            f"{own['coded_accuracy']:.2%} with sixteen values a layer. Activations and cycles are "
            f"of {own['examples']} held-out examples, queues of {_DEPTH}. With fewer outputs than "
            f"a few for each of {pes} elements most of the storage is pointers.",
        ),
        Section(
            "Machine and versions", [["", "this run"], *map(list, report["environment"].items())]
        ),
    ]
    return render(
        "EIE in numbers",
        "The accelerator of Han et al., 2016 (https://arxiv.org/abs/1602.01528), cycle by cycle: "
        "what it stores, how evenly its elements work, and how long layers take.",
        sections,
    )


def layers(report: Mapping[str, Any]) -> Rows:
    """Published beside simulated."""
    head = ["layer", "shape", "weights", "active", "speed-up", "us", "balance, queue of 1"]
    body = (
        [
            row["layer"],
            f"{row['inputs']} x {row['outputs']}",
            f"{row['weight_density']:.0%}",
            f"{row['activation_density']:.1%}",
            f"{row['speedup']:.0f}",
            f"{row['microseconds'][_DEPTH]:.1f}",
            f"{row['efficiency'][1]:.2f}",
            f"{row['efficiency'][_DEPTH]:.2f}",
            f"{row['padding']:.3f}",
            f"{row['expected_padding']:.3f}",
        ]
        for row in report["layers"]
    )
    return [[*head, f"of {_DEPTH}", "padding", "expected"], *body]


def storage(report: Mapping[str, Any]) -> Rows:
    """Kilobytes by what they are spent on."""
    rows = [["layer", "weights, KB", "fillers", "pointers", "all", "bits a weight", "of dense"]]
    for row in report["layers"]:
        bits = row["bits"]
        parts = [bits["nonzeros"], bits["padding"], bits["pointers"], sum(bits.values())]
        rows.append(
            [
                row["layer"],
                *(f"{part / 8e3:,.0f}" for part in parts),
                f"{row['bits_per_weight']:.2f}",
                f"{row['bits_per_weight'] / 32:.1%}",
            ]
        )
    return rows


def trained(report: Mapping[str, Any]) -> Rows:
    """The layers of a run."""
    rows = [
        ["layer", "shape", "weights", "active", "padding", "bits a weight", "cycles", "balance"]
    ]
    for row in report["trained"]["layers"]:
        balance = row["efficiency"]
        rows.append(
            [
                row["layer"],
                " x ".join(map(str, row["shape"])),
                f"{row['weight_density']:.1%}",
                f"{row['activation_density']:.1%}",
                f"{row['padding']:.3f}",
                f"{row['bits_per_weight']:.2f}",
                f"{row['cycles']:.0f}",
                "" if balance is None else f"{balance:.2f}",
            ]
        )
    return rows
