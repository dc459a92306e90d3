"""What a report of `experiments.search` says, as tables and sentences."""

from collections.abc import Mapping
from typing import Any


def title(report: Mapping[str, Any]) -> str:
    """What was run, in a few words."""
    return f"{report['method']} on {report['data']}, {report['model']}"


def lead(report: Mapping[str, Any]) -> str:
    """What was run, in a sentence."""
    budget, cost, config = report["budget"], report["cost"], report["config"]
    return (
        f"{cost['found']:,.6g} of {cost['dense']:,.6g} {budget['unit']}, the budget being "
        f"{budget['most']:,.6g}; searched in {report['search_seconds'] / 60:.2f} minutes on "
        f"{min(config['examples'], report['validation_examples']):,} validation examples of "
        f"{report['data_source']}, then tuned for {config['tuning']['steps']:,} steps. Accuracy is "
        f"that of {report['test_examples']:,} test examples, which nothing was chosen on."
    )


def stages(report: Mapping[str, Any]) -> list[list[str]]:
    """A header, then a row for the dense model, the searched and the tuned one."""
    table = [["", "accuracy", "on validation", "MACs", "parameters"]]
    for row in report["rows"]:
        which = "dense" if row is report["rows"][0] else "found"
        sizes = report["speed"]["parameters"]["dense" if which == "dense" else "shrunk"]
        shares = (f"{row[key]:.2%}" for key in ("accuracy", "validation_accuracy"))
        table.append([row["stage"], *shares, f"{report['flops'][which]:,}", f"{sizes:,}"])
    return table


def speeds(report: Mapping[str, Any]) -> list[list[str]]:
    """A header, then a row for the dense model and for the shrunk one."""
    speed = report["speed"]
    table = [[f"forward pass of {speed['batch']}", "ms", "processor ms", "times faster"]]
    for name in speed["ms"]:
        faster = "" if name == "dense" else f"{speed['speedup']:.2f}"
        times = (f"{speed[key][name]:.3f}" for key in ("ms", "cpu_ms"))
        table.append([name, *times, faster])
    if "predicted" in speed:
        found = speed["predicted"]
        for name, key in (("dense", "dense_ms"), ("shrunk", "found_ms")):
            table.append([f"{name}, predicted", f"{found[key]:.3f}", "", ""])
        text = f"{found['measured_ms']:.3f} ({found['error']:+.1%})"
        table.append(["shrunk, measured beside it (error)", text, "", ""])
    return table


def groups(report: Mapping[str, Any]) -> list[list[str]]:
    """A header, then a row for every group of channels."""
    table = [["group", "kept", "of", "share"]]
    for row in report["groups"]:
        share = f"{row['kept'] / row['units']:.1%}"
        table.append([row["group"], f"{row['kept']:,}", f"{row['units']:,}", share])
    return table
