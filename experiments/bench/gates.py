"""What the kernels must reach, and whether a table of measurements does.

For Hopper efficiency is useful operations per second over the dense rate, the best that jnp.dot
reached in bfloat16 in the same run. About so small must a density be to break even.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

LARGE = 4096  # rows from which a product is bounded by arithmetic


class Gate(NamedTuple):
    """A figure that every row of one kind must reach."""

    kernel: str
    figure: str
    least: float
    storage: str
    directions: tuple[str, ...]


HOPPER = [
    Gate("block 128x128, forward and dX", "efficiency", 0.55, "128x128", ("forward", "dx")),
    Gate("block 128x128, dW", "efficiency", 0.45, "128x128", ("dvalues",)),
    Gate("block 64x64", "efficiency", 0.30, "64x64", ("forward", "dx", "dvalues")),
    Gate("block 32x32", "efficiency", 0.15, "32x32", ("forward", "dx", "dvalues")),
    Gate("2:4 decode", "speedup", 1.15, "2:4", ("forward",)),
]


def add_efficiency(rows: Sequence[dict[str, Any]]) -> float:
    """Writes `efficiency` into every row; returns the dense rate that it refers to."""
    rate = max(row["dense_tflops"] for row in rows)
    for row in rows:
        row["efficiency"] = row["tflops"] / rate
    return rate


def verdicts(gates: Sequence[Gate], rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """For every gate its worst and best row of bfloat16, and whether the worst passes."""
    found = []
    for gate in gates:
        figures = [
            row[gate.figure]
            for row in rows
            if row["storage"] == gate.storage
            and row["dtype"] == "bfloat16"
            and row["direction"] in gate.directions
            and (gate.figure == "speedup" or row["rows"] >= LARGE)
        ]
        found.append(
            gate._asdict()
            | {"worst": min(figures, default=None), "best": max(figures, default=None)}
            | {"met": min(figures) >= gate.least if figures else None}
        )
    return found


def line(verdict: dict[str, Any]) -> str:
    """A verdict in words."""
    name = f"{verdict['kernel']:<30} {verdict['figure']} at least {verdict['least']:.2f}"
    if verdict["met"] is None:
        return f"{name}: not measured"
    word = "met" if verdict["met"] else "MISSED"
    return f"{name}: {word}, {verdict['worst']:.2f} to {verdict['best']:.2f}"


KEY = ("storage", "dtype", "direction", "batch")
# (storage, dtype, direction) -> batch -> density -> times as fast as `jnp.dot`, in float32:
# what a prototype reached on two Skylake cores.
CPU = {
    ("block32x32", "float32", "forward"): {
        512: {0.5: 2.4, 0.25: 4.3, 0.1: 7.9},
        64: {0.5: 3.3, 0.25: 5.7, 0.1: 12},
        8: {0.5: 3.4, 0.25: 7.5, 0.1: 14},
        1: {0.5: 2.1, 0.25: 4.1, 0.1: 9},
    },
    ("block4x16", "float32", "forward"): {
        512: {0.5: 1.8, 0.25: 3.2, 0.1: 5.5},
        64: {0.5: 2.4, 0.25: 4.5, 0.1: 11},
        8: {0.5: 2.5, 0.25: 5, 0.1: 10},
        1: {0.5: 2, 0.25: 4, 0.1: 7},
    },
    ("unstructured", "float32", "forward"): {
        512: {0.5: 1.4, 0.25: 2.2, 0.1: 4.1},
        64: {0.5: 1.9, 0.25: 3.1, 0.1: 5},
        8: {0.5: 2.6, 0.25: 4.1, 0.1: 10},
        1: {0.5: 1.8, 0.25: 2.8, 0.1: 5.2},
    },
    ("2:4", "float32", "forward"): {512: {0.5: 1.6}, 64: {0.5: 1.8}, 8: {0.5: 3.9}, 1: {0.5: 2.0}},
    ("1:4", "float32", "forward"): {
        512: {0.25: 2.4},
        64: {0.25: 3.4},
        8: {0.25: 6.6},
        1: {0.25: 4.4},
    },
    ("2:4", "bfloat16", "forward"): {1: {0.5: 3.6}},
    ("1:4", "bfloat16", "forward"): {1: {0.25: 8}},
    ("2:4", "int8", "forward"): {1: {0.5: 6.5}},
    ("1:4", "int8", "forward"): {1: {0.25: 13}},
    ("block32x32", "float32", "dx"): {512: {0.5: 1.7, 0.25: 2.9, 0.1: 5.1}},
    ("block32x32", "float32", "dvalues"): {512: {0.5: 1.4, 0.25: 2.8, 0.1: 4.5}},
}
# What `jnp.dot` was there, as a share of the peak: a target's ratio, times its density, times
# this is the share that the kernel reached on what is kept. Forward only; for one row it is not
# known.
CPU_DENSE_SHARE = {512: 0.5, 64: 0.2, 8: 0.065}


def cpu_verdicts(rows: Sequence[Mapping[str, Any]], peak: float) -> str:
    """The targets above, each with what was measured; bold what falls short.

    A ratio says as much of the dense product as of the kernel, so beside the ratios stand the
    shares of the peak, which do not depend on it.

    Args:
      rows: those of the native kernels.
      peak: GFLOP/s of multiply-adds on the machine of the rows.

    Returns:
      A table and how many are met; a cell is the worst shape's, density by density.
    """
    head = ["storage, densities", "batch", "target", "measured", "target of peak", "of peak"]
    lines = [head, ["---"] * len(head)]
    every: tuple[list, list] = [], []
    for (storage, dtype, direction), batches in CPU.items():
        for batch, targets in batches.items():
            key = storage, dtype, direction, batch
            same = [r for r in rows if key == tuple(r[name] for name in KEY)]
            found = {d: [r for r in same if r["density"] == d] for d in targets}
            dense = CPU_DENSE_SHARE.get(batch, math.nan) if direction == "forward" else math.nan
            ratios = [(_least(f, "speedup"), targets[d]) for d, f in found.items()]
            shares = [
                (_least(f, "gflops") / peak, targets[d] * d * dense) for d, f in found.items()
            ]
            for pairs, more in zip(every, (ratios, shares), strict=True):
                pairs += [pair for pair in more if not any(map(math.isnan, pair))]
            name = f"{storage} {dtype}" + (f" {direction}" if direction != "forward" else "")
            lines.append(
                [
                    f"{name}, {' / '.join(f'{d:g}' for d in targets)}",
                    str(batch),
                    *_cells(ratios, ".1f", "g"),
                    *_cells(shares, ".0%", ".0%"),
                ]
            )
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    met = (f"{sum(f >= t for f, t in pairs)} of {len(pairs)}" for pairs in every)
    return "{}\n\nMet: {} ratios, {} shares of the peak.\n".format(table, *met)


def _least(rows: Sequence[Mapping[str, Any]], figure: str) -> float:
    return min((row[figure] for row in rows), default=math.nan)


def _cells(pairs: Sequence[tuple[float, float]], form: str, target_form: str) -> list[str]:
    """Two cells: the targets, and what was measured."""

    def measured(found, target):
        text = _number(found, form)
        return f"**{text}**" if found < target else text

    return [
        " / ".join(_number(target, target_form) for _, target in pairs),
        " / ".join(measured(*pair) for pair in pairs),
    ]


def _number(value: float, form: str) -> str:
    return "-" if math.isnan(value) else f"{value:{form}}"
