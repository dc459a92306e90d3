"""What a report of `experiments.oneshot` says, as tables and sentences."""

from collections.abc import Mapping
from typing import Any


def title(report: Mapping[str, Any]) -> str:
    """What was run, in a few words."""
    return f"{report['method']} on {report['model']}, {report['pattern']}"


def lead(report: Mapping[str, Any]) -> str:
    """What was run, in a sentence."""
    return (
        f"{report['pruned_parameters']:,} parameters of {report['pruned_leaves']} linear layers "
        f"({report['model_source']}), by {report['calibration_sequences']} sequences of "
        f"{report['length']} tokens of {_names(report, 'calibration')}; tested on "
        f"{report['test_sequences']} others of {_names(report, 'test')} each. Peak memory "
        f"{report['peak_memory_bytes'] / 2**30:.2f} GiB."
    )


def stages(report: Mapping[str, Any]) -> list[list[str]]:
    """A header, then a row for the dense model and for every stage."""
    names = list(report["rows"][0]["perplexity"])
    norms = any(row.get("layer_loss_by") == "squares" for row in report["rows"])
    loss = "layer loss by norms" if norms else "layer loss"
    table = [["", *(f"perplexity, {name}" for name in names), "sparsity", loss, "minutes"]]
    for row in report["rows"]:
        cells = [number(row["perplexity"][name]) for name in names]
        loss, seconds = row.get("layer_loss"), row.get("prune_seconds")
        cells += [f"{row['sparsity']:.2%}", "-" if loss is None else f"{loss:.4f}"]
        table.append([row["stage"], *cells, "-" if seconds is None else f"{seconds / 60:.2f}"])
    return table


def speeds(report: Mapping[str, Any]) -> list[list[str]]:
    """A header, then a row for every form of the model that wrote."""
    table = [["", "tokens per second", "times dense float32", "times dense bfloat16", "MiB"]]
    for row in report["speed"]:
        times = (f"{row['speedup'][f'dense {name}']:.2f}" for name in ("float32", "bfloat16"))
        size = f"{row['bytes'] / 2**20:.1f}"
        table.append([row["model"], f"{row['tokens_per_second']:.2f}", *times, size])
    return table


def number(perplexity: float | None) -> str:
    """A perplexity with one digit; None is one that is not finite.

    >>> number(57.43), number(None)
    ('57.4', 'not finite')
    """
    return "not finite" if perplexity is None else f"{perplexity:.1f}"


def _names(report: Mapping[str, Any], part: str) -> str:
    return " and ".join(report["config"][part]["corpora"])
