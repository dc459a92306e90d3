"""Figures of the EIE report, without a display."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from experiments.eie.published import ELEMENTS

_PARTS = {"nonzeros": "weights", "padding": "fillers", "pointers": "pointers"}


def balance(layers: Sequence[Mapping[str, Any]], depths: Sequence[int]) -> Figure:
    """Share of cycles that do work, against the depth of the queues."""
    figure, axes = _one()
    for row in layers:
        found = [row["efficiency"][depth] for depth in depths]
        axes.plot(depths, found, marker="o", markersize=3, label=row["layer"])
    axes.axvline(8, color="#718096", linewidth=0.8, linestyle="--")
    axes.set_xscale("log", base=2)
    axes.set_xticks(depths, [str(depth) for depth in depths])
    axes.set(xlabel="activations a queue holds", ylabel="load balance", ylim=(0, 1.02))
    figure.legend(fontsize=8, loc="outside right upper")
    return figure


def padding(layers: Sequence[Mapping[str, Any]]) -> Figure:
    """Fillers a nonzero, against the number of processing elements."""
    figure, axes = _one()
    for row in layers:
        axes.plot(ELEMENTS, row["padding_by_pes"], marker="o", markersize=3, label=row["layer"])
    axes.set_xscale("log", base=2)
    axes.set_xticks(ELEMENTS, [str(pes) for pes in ELEMENTS])
    axes.set(xlabel="processing elements", ylabel="fillers for each weight kept")
    figure.legend(fontsize=8, loc="outside right upper")
    return figure


def storage(layers: Sequence[Mapping[str, Any]]) -> Figure:
    """Bits for each weight of the dense matrix, by what they are spent on."""
    figure, axes = _one()
    names, below = [row["layer"] for row in layers], [0.0] * len(layers)
    for part, label in _PARTS.items():
        share = [row["bits"][part] / (row["inputs"] * row["outputs"]) for row in layers]
        axes.bar(names, share, bottom=below, label=label)
        below = [b + s for b, s in zip(below, share, strict=True)]
    axes.set(ylabel="bits a weight, of 32 dense")
    axes.tick_params(axis="x", labelrotation=30)
    figure.legend(fontsize=8, loc="outside right upper")
    return figure


def _one() -> tuple[Figure, Any]:
    figure = Figure(figsize=(7, 3.4), layout="constrained")
    return figure, figure.add_subplot()
