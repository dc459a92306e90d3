"""Figures of a run, as matplotlib figures without a display."""

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter

import jaxsparse as js

_BLUE, _ORANGE, _GREY = "#2b6cb0", "#c05621", "#718096"


def losses(history: Sequence[Mapping[str, float]], unit: str, dense_until: int) -> Figure:
    """Training and held-out loss against the step.

    Args:
      history: records of ``metrics.jsonl``.
      unit: what the loss is, for the axis.
      dense_until: where pruning begins, drawn as a line unless 0.
    """
    figure = Figure(figsize=(7, 3.2), layout="constrained")
    axes = figure.add_subplot()
    training, held_out = _series(history, "loss"), _series(history, "test_loss")
    axes.plot(*training, color=_BLUE, label="training batch")
    axes.plot(*held_out, color=_ORANGE, marker="o", markersize=3, label="held out")
    if all(value > 0 for value in (*training[1], *held_out[1])):
        axes.set_yscale("log")
    _mark(axes, dense_until)
    axes.set_xlabel("step")
    axes.set_ylabel(unit)
    figure.legend(fontsize=8, loc="outside upper center", ncols=3)
    return figure


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
    found, sparse = _series(history, f"test_{metric}"), _series(history, "sparsity")
    lines = left.plot(*found, color=_BLUE, marker="o", markersize=3, label=f"held-out {metric}")
    lines += right.plot(*sparse, color=_ORANGE, label="sparsity of the pruned leaves")
    lines += _mark(left, dense_until)
    left.set_xlabel("step")
    left.set_ylabel(f"held-out {metric}", color=_BLUE)
    right.set_ylabel("sparsity (fraction zero)", color=_ORANGE)
    right.set_ylim(-0.02, 1.02)
    figure.legend(handles=lines, fontsize=8, loc="outside upper center", ncols=3)
    return figure


def lifecycle(
    history: Sequence[Mapping[str, float]],
    metric: str,
    leaves: Sequence[Mapping[str, Any]],
    rules: Sequence[Sequence],
    phases: Sequence[tuple[str, float, float]],
) -> Figure:
    """Loss and metric above, sparsity by rule below, against the step; phases are shaded.

    Args:
      history: records of ``metrics.jsonl``; pruned leaves are ``sparsity/<path>``.
      metric: name of the metric; evaluated records hold ``test_<metric>``.
      leaves: with keys path and size.
      rules: (path regex, pattern) of the config; one without such leaves is not drawn.
      phases: (name, first step, last step).
    """
    figure = Figure(figsize=(7, 5), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    right = above.twinx()
    lines = above.plot(*_series(history, "loss"), color=_GREY, linewidth=1, label="loss, training")
    held_out = _series(history, f"test_{metric}")
    label = f"held-out {metric}"
    lines += right.plot(*held_out, color=_BLUE, marker="o", markersize=3, label=label)
    above.set_ylabel("loss", color=_GREY)
    right.set_ylabel(label, color=_BLUE)
    sizes = {leaf["path"]: leaf["size"] for leaf in leaves}
    for path, pattern, *_ in rules:
        of_rule = {
            f"sparsity/{leaf}": size for leaf, size in sizes.items() if re.fullmatch(path, leaf)
        }
        records = [record for record in history if record.keys() & of_rule.keys()]
        shares = [
            np.average(
                [r[key] for key in of_rule if key in r],
                weights=[size for key, size in of_rule.items() if key in r],
            )
            for r in records
        ]
        if records:
            lines += below.plot([r["step"] for r in records], shares, label=f"{path}: {pattern}")
    below.set_ylabel("sparsity by rule")
    below.set_ylim(-0.02, 1.02)
    below.set_xlabel("step")
    for (name, begin, end), shade in zip(phases, itertools.cycle((0.0, 0.12))):
        for axes in (above, below):
            axes.axvspan(begin, end, color=_GREY, alpha=shade, linewidth=0)
        if end > begin:
            middle = (begin + end) / 2
            above.text(
                middle, 1.02, name, transform=above.get_xaxis_transform(), ha="center", fontsize=8
            )
    figure.legend(handles=lines, fontsize=7, loc="outside lower center", ncols=1)
    return figure


def latencies(spread: Mapping[str, Sequence[float]]) -> Figure:
    """A box per model: median, quartiles, and the 5th and 95th percentile as whiskers.

    Args:
      spread: label -> the five percentiles in milliseconds, ascending.
    """
    figure = Figure(figsize=(7, 0.9 + 0.5 * len(spread)), layout="constrained")
    axes = figure.add_subplot()
    keys = ("whislo", "q1", "med", "q3", "whishi")
    boxes = [
        {"label": label, **dict(zip(keys, values, strict=True))} for label, values in spread.items()
    ]
    axes.bxp(
        boxes,
        orientation="horizontal",
        showfliers=False,
        widths=0.5,
        patch_artist=True,
        boxprops={"facecolor": "#bee3f8", "edgecolor": _BLUE},
        medianprops={"color": _ORANGE, "linewidth": 2},
    )
    for position, (_, _, median, _, high) in enumerate(spread.values(), start=1):
        axes.text(high, position, f"  {median:.3g}", va="center", color=_ORANGE, fontsize=9)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.12 * max(high for *_, high in spread.values()))
    axes.set_xlabel("milliseconds a forward pass (orange: median)")
    return figure


def perplexities(found: Mapping[str, Mapping[str, Sequence[tuple[float, float]]]]) -> Figure:
    """Perplexity against sparsity, a panel for each corpus and a line for each method.

    Args:
      found: corpus -> method -> (sparsity, perplexity).
    """
    figure = Figure(figsize=(7, 3.6), layout="constrained")
    lines = {}
    for axes, (corpus, methods) in zip(
        figure.subplots(1, max(1, len(found)), squeeze=False)[0], found.items(), strict=False
    ):
        for method, points in methods.items():
            x, y = zip(*sorted(points), strict=True)
            (lines[method],) = axes.plot(x, y, marker="o", markersize=3, label=method)
        axes.set_yscale("log")
        # Numbers as the tables have them, not 6 x 10¹.
        axes.yaxis.set_major_formatter(LogFormatter())
        axes.yaxis.set_minor_formatter(LogFormatter())
        axes.set_title(corpus, fontsize=9)
        axes.set_xlabel("sparsity (fraction zero)")
        axes.set_ylabel("perplexity")
    figure.legend(handles=list(lines.values()), fontsize=7, loc="outside lower center", ncols=2)
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
    axes.set_xlim(0, 1.12)
    axes.invert_yaxis()
    axes.set_xlabel("density (fraction kept)")
    return figure


def widths(groups: Sequence[Mapping[str, Any]]) -> Figure:
    """A bar per group of channels: the share that is kept.

    Args:
      groups: with keys group, kept and units.
    """
    figure = Figure(figsize=(7, 0.9 + 0.28 * max(1, len(groups))), layout="constrained")
    axes = figure.add_subplot()
    bars = axes.barh(
        range(len(groups)), [row["kept"] / row["units"] for row in groups], color=_BLUE
    )
    axes.bar_label(bars, [f" {row['kept']:,} of {row['units']:,}" for row in groups])
    axes.set_yticks(range(len(groups)), [row["group"] for row in groups], fontsize=6)
    axes.set_xlim(0, 1.2)
    axes.invert_yaxis()
    axes.set_xlabel("share of the channels that is kept")
    return figure


MASKS_SHOWN = 12


def mask_pictures(masks: Mapping[str, np.ndarray]) -> Figure:
    """One picture per mask: dark where a weight is kept, the input axis downwards.

    Args:
      masks: path -> mask; the axes before the last are folded into rows. The first
        ``MASKS_SHOWN`` are drawn.
    """
    shown = list(masks.items())[:MASKS_SHOWN]
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
        axes.set_xlabel("outputs", fontsize=7)
        axes.set_ylabel("inputs", fontsize=7)
    return figure


def _series(history: Sequence[Mapping[str, float]], name: str) -> tuple[list[float], list[float]]:
    """Steps and values of the records that hold ``name``."""
    records = [record for record in history if name in record]
    return [record["step"] for record in records], [record[name] for record in records]


def _mark(axes: Any, dense_until: int) -> list[Any]:
    """A dotted line where the masks begin, if they begin after the start."""
    if not dense_until:
        return []
    label = f"first masks (step {dense_until:,})"
    return [axes.axvline(dense_until, color=_GREY, linestyle=":", label=label)]
