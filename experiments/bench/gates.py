"""What the Hopper kernels must reach, and whether a table of measurements does.

Efficiency is useful operations per second over the dense rate, the best that jnp.dot
reached in bfloat16 in the same run. About so small must a density be to break even.
"""

from collections.abc import Sequence
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
