"""Figures of what a search tried."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

_BLUE, _ORANGE, _GREY = "#2b6cb0", "#c05621", "#718096"


def sensitivities(history: Mapping[str, Any], what: str) -> Figure:
    """A panel per group: what is lost against the ratio that goes, with its 95 % band.

    Args:
      history: with ratios, and by name of a group drops and bands.
      what: is lost, for the axis.
    """
    drops, ratios = history["drops"], [0.0, *history["ratios"]]
    columns = min(4, max(1, len(drops)))
    rows = -(-len(drops) // columns)
    figure = Figure(figsize=(2.4 * columns, 1.9 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    for axes, name in zip(panels.flat, drops, strict=False):
        low, high = np.array([(0.0, 0.0), *history["bands"][name]], float).T
        axes.fill_between(ratios, low, high, color=_BLUE, alpha=0.2, linewidth=0)
        axes.plot(ratios, [0.0, *drops[name]], color=_BLUE, marker="o", markersize=3)
        axes.set_title(_short(name), fontsize=6)
    for axes in panels.flat[len(drops) :]:
        axes.set_visible(False)
    figure.supxlabel("share of the group that goes", fontsize=9)
    figure.supylabel(what, fontsize=9)
    return figure


def candidates(history: Mapping[str, Any]) -> Figure:
    """Accuracy against cost: all candidates of NetAdapt, and the way of those it went on with.

    Args:
      history: as `NetAdapt.to_dict` has it.
    """
    figure = Figure(figsize=(7, 3.6), layout="constrained")
    axes = figure.add_subplot()
    tuned = [each for each in history["candidates"] if each["accuracy"] is not None]
    chosen = [each for each in tuned if each["chosen"]]
    axes.scatter(
        [each["cost"] for each in tuned],
        [each["accuracy"] for each in tuned],
        *(12, _GREY),
        alpha=0.5,
        label="candidates, after a few steps",
    )
    axes.plot(
        [history["cost_before"], *(each["cost"] for each in chosen)],
        [history["accuracy_before"], *(each["accuracy"] for each in chosen)],
        color=_ORANGE,
        marker="o",
        markersize=4,
        label="chosen",
    )
    axes.axvline(history["budget"], color=_BLUE, linestyle=":", label="budget")
    axes.set_xlabel(history["unit"])
    axes.set_ylabel("accuracy on validation")
    axes.legend(fontsize=8)
    return figure


def episodes(history: Mapping[str, Any]) -> Figure:
    """Reward above, cost below, against the episode of AMC.

    Args:
      history: as `AMC.to_dict` has it.
    """
    found = history["history"]
    figure = Figure(figsize=(7, 4.4), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    above.plot(found["rewards"], color=_GREY, linewidth=0.8, label="episode")
    best = np.maximum.accumulate(np.asarray(found["rewards"], float))
    above.plot(best, color=_ORANGE, label="best so far")
    above.set_ylabel("reward")
    above.legend(fontsize=8)
    below.plot(found["costs"], color=_BLUE, linewidth=0.8, label="of the policy")
    if history["budget"] is not None:
        below.axhline(history["budget"], color=_ORANGE, linestyle=":", label="budget")
    below.set_ylabel(history["unit"])
    below.set_xlabel("episode")
    below.legend(fontsize=8)
    return figure


def ratios(history: Mapping[str, Any]) -> Figure:
    """What AMC kept of every group, dark where much, against the episode.

    Args:
      history: as `AMC.to_dict` has it.
    """
    names = history["names"]
    figure = Figure(figsize=(7, 0.9 + 0.24 * max(1, len(names))), layout="constrained")
    axes = figure.add_subplot()
    kept = np.asarray(history["history"]["kept"], float).T
    picture = axes.imshow(kept, "Blues", vmin=0, vmax=1, aspect="auto", interpolation="nearest")
    axes.set_yticks(range(len(names)), [_short(name) for name in names], fontsize=6)
    axes.set_xlabel("episode")
    figure.colorbar(picture, label="share that is kept")
    return figure


def _short(name: str, most: int = 48) -> str:
    """A name without the folder that all have."""
    name = name.removeprefix("params/")
    return name if len(name) <= most else f"{name[: most - 3]}..."


def of(method: str, history: Mapping[str, Any]) -> Sequence[tuple[str, Figure, str]]:
    """Title, figure and a sentence of what a method tried; none for uniform scaling."""
    if method == "sensitivity":
        joint = history["joint"]
        return [
            (
                "Sensitivity",
                sensitivities(history, "accuracy lost"),
                "With that group alone narrowed and no tuning; bands are of 95 %. All groups as "
                f"they were chosen lose {joint['drop']:.4f} together, and {joint['sum']:.4f} as "
                "the sum of what each loses alone.",
            )
        ]
    if method == "spdy":
        text = "With that group alone narrowed; bands are of 95 %. The sum of these is least."
        return [("Losses", sensitivities(history, "cross-entropy added"), text)]
    if method == "netadapt":
        text = "Each point is a network with one group narrower than the one before it."
        return [("Accuracy against cost", candidates(history), text)]
    if method == "amc":
        return [
            ("Episodes", episodes(history), "No policy is above the budget."),
            ("Ratios", ratios(history), "What the agent kept of every group."),
        ]
    return []
