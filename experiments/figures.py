"""Figures of a run, as matplotlib figures without a display."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

import jaxsparse as js

_BLUE, _ORANGE, _GREY = "#2b6cb0", "#c05621", "#a0aec0"


def curves(history: Sequence[Mapping[str, float]], metric: str, dense_until: int) -> Figure:
    """The held-out metric (left axis) and the sparsity (right axis) against the step.

    Args:
      history: records of ``metrics.jsonl``.
      metric: name of the metric; evaluated records hold ``test_<metric>``.
      dense_until: where pruning begins, drawn as a line unless 0.
    """
    figure = Figure(figsize=(7, 3.2), layout="constrained")
    left = figure.add_subplot()
    right = left.twinx()
    found = [(r["step"], r[f"test_{metric}"]) for r in history if f"test_{metric}" in r]
    sparse = [(r["step"], r["sparsity"]) for r in history if "sparsity" in r]
    if found:
        left.plot(*zip(*found, strict=True), color=_BLUE, marker="o", markersize=3)
    if sparse:
        right.plot(*zip(*sparse, strict=True), color=_ORANGE)
    if dense_until:
        left.axvline(dense_until, color=_GREY, linestyle=":")
    left.set_xlabel("step")
    left.set_ylabel(f"held-out {metric}", color=_BLUE)
    right.set_ylabel("sparsity", color=_ORANGE)
    right.set_ylim(-0.02, 1.02)
    return figure


def densities(leaves: Sequence[Mapping[str, Any]]) -> Figure:
    """A bar per pruned leaf: the fraction of its entries that is kept.

    Args:
      leaves: with keys path, sparsity and size.
    """
    figure = Figure(figsize=(7, 0.9 + 0.28 * max(1, len(leaves))), layout="constrained")
    axes = figure.add_subplot()
    kept = [1.0 - leaf["sparsity"] for leaf in leaves]
    bars = axes.barh([leaf["path"] for leaf in leaves], kept, color=_BLUE)
    axes.bar_label(bars, [f" {100 * density:.1f} %" for density in kept])
    axes.set_xlim(0, 1.15 * max(kept, default=1.0) or 1.0)
    axes.invert_yaxis()
    axes.set_xlabel("density (fraction kept)")
    return figure


def mask_pictures(masks: Mapping[str, np.ndarray], limit: int = 12) -> Figure:
    """One picture per mask: dark where a weight is kept, the input axis downwards.

    Args:
      masks: path -> mask; the axes before the last are folded into rows.
      limit: the first so many are shown.
    """
    shown = list(masks.items())[:limit]
    columns = min(3, max(1, len(shown)))
    rows = max(1, math.ceil(len(shown) / columns))
    figure = Figure(figsize=(2.6 * columns, 2.4 * rows), layout="constrained")
    for index, (path, mask) in enumerate(shown, start=1):
        axes = figure.add_subplot(rows, columns, index)
        picture = js.mask_picture(mask)
        axes.imshow(picture, "gray", vmin=0, vmax=255, aspect="auto", interpolation="nearest")
        axes.set_title(f"{path}\n{' x '.join(map(str, mask.shape))}", fontsize=7)
        axes.set_xticks([])
        axes.set_yticks([])
    return figure
