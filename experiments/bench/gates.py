"""What the kernels must reach, and whether a table of measurements does.

For Hopper efficiency is useful operations per second over the dense rate, the best that jnp.dot
reached in bfloat16 in the same run. About so small must a density be to break even.
"""

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


# (storage, dtype) -> batch -> density -> times as fast as `jnp.dot`, in float32: what a
# prototype reached on two Skylake cores, where `jnp.dot` is at half the peak at batch 512.
CPU = {
    ("block32x32", "float32"): {
        512: {0.5: 2.4, 0.25: 4.3, 0.1: 7.9},
        64: {0.5: 3.3, 0.25: 5.7, 0.1: 12},
        8: {0.5: 3.4, 0.25: 7.5, 0.1: 14},
        1: {0.5: 2.1, 0.25: 4.1, 0.1: 9},
    },
    ("block4x16", "float32"): {
        512: {0.5: 1.8, 0.25: 3.2, 0.1: 5.5},
        64: {0.5: 2.4, 0.25: 4.5, 0.1: 11},
        8: {0.5: 2.5, 0.25: 5, 0.1: 10},
        1: {0.5: 2, 0.25: 4, 0.1: 7},
    },
    ("unstructured", "float32"): {
        512: {0.5: 1.4, 0.25: 2.2, 0.1: 4.1},
        64: {0.5: 1.9, 0.25: 3.1, 0.1: 5},
        8: {0.5: 2.6, 0.25: 4.1, 0.1: 10},
        1: {0.5: 1.8, 0.25: 2.8, 0.1: 5.2},
    },
    ("2:4", "float32"): {512: {0.5: 1.6}, 64: {0.5: 1.8}, 8: {0.5: 3.9}, 1: {0.5: 2.0}},
    ("1:4", "float32"): {512: {0.25: 2.4}, 64: {0.25: 3.4}, 8: {0.25: 6.6}, 1: {0.25: 4.4}},
    ("2:4", "bfloat16"): {1: {0.5: 3.6}},
    ("1:4", "bfloat16"): {1: {0.25: 8}},
    ("2:4", "int8"): {1: {0.5: 6.5}},
    ("1:4", "int8"): {1: {0.25: 13}},
}


def cpu_verdicts(least: Mapping[tuple, Mapping[float, float]]) -> str:
    """A table of the targets above, each with what was measured; bold what falls short.

    Args:
      least: (storage, dtype, batch) -> density -> the ratio of the worst shape.
    """
    lines = ["| storage, density | batch | target | measured |", "|---|---|---|---|"]
    for (storage, dtype), batches in CPU.items():
        for batch, targets in batches.items():
            found = least.get((storage, dtype, batch), {})
            density = " / ".join(f"{d:g}" for d in targets)
            target = " / ".join(f"{t:g}" for t in targets.values())
            cells = " / ".join(_against(found.get(d), t) for d, t in targets.items())
            lines.append(f"| {storage} {dtype}, {density} | {batch} | {target} | {cells} |")
    return "\n".join(lines) + "\n"


def _against(found: float | None, target: float) -> str:
    if found is None:
        return "-"
    return f"{found:.1f}" if found >= target else f"**{found:.1f}**"
