"""What ``report.json`` says of a run, in words and as a table."""

import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jaxsparse.text import columned


def title(report: Mapping[str, Any]) -> str:
    """What was run, in a few words."""
    return f"{report['recipe']} on {report['data']}, {report['model']}"


def lead(report: Mapping[str, Any]) -> str:
    """What was run, in a sentence."""
    return (
        f"{report['steps']:,} steps on {report['train_examples']:,} examples, "
        f"{report['test_examples']:,} held out ({report['source']}), "
        f"in {report['seconds']:.1f} seconds, compilation included."
    )


def rows(report: Mapping[str, Any]) -> list[list[str]]:
    """The table of a run: a header, then one row per quantity, dense against sparse."""

    def pair(name: str, form: Callable[[float], str], *keys: str) -> list[str]:
        values = (report.get(key) for key in keys)
        return [name, *("-" if value is None else form(value) for value in values)]

    metric = report["headline"]
    table = [["", "dense", "sparse"]]
    for name in dict.fromkeys(
        [metric, *(m for m in ("accuracy", "f1", "auc") if f"sparse_{m}" in report)]
    ):
        form = "{:.2%}".format if name == "accuracy" else "{:.4f}".format
        table.append(pair(f"held-out {name}", form, f"dense_{name}", f"sparse_{name}"))
    count = "{:,}".format
    table.append(pair("parameters", count, "dense_parameters", "sparse_parameters"))
    table.append(pair("bytes, indices counted", count, "dense_bytes", "sparse_bytes"))
    table.append(["sparsity of the pruned leaves", "0.00%", f"{report['sparsity']:.2%}"])
    table.append(["sparsity of the model", "0.00%", f"{report['total_sparsity']:.2%}"])
    if "speedup" in report:
        name = f"forward pass of {report['latency_examples']} examples, ms"
        table.append(pair(name, "{:.3f}".format, "dense_ms", "sparse_ms"))
        spread = (report["latency"][f"{side}_percentiles_ms"] for side in ("dense", "sparse"))
        middle = (f"{low:.3f}-{high:.3f}" for _, low, _, high, _ in spread)
        table.append(["  half of the passes within", *middle])
    if "linear_left" in report:
        table.append(["linear weights stored", "100.00%", f"{report['linear_left']:.2%}"])
        for key, name in (("linear", "bytes of linear weights"), ("model", "bytes of all weights")):
            for bits, suffix in ((32, ""), (16, "_16")):
                sizes = report[f"{key}_bytes{suffix}"]
                cells = (f"{sizes[form]:,}" for form in ("dense", "smallest"))
                table.append([f"{name}, {bits} bits", *cells])
        for batch, found in report["forms"].items():
            times = found["ms"]["dense"], found["ms"][_smallest(found)]
            table.append([f"forward pass of {batch}, ms", *(f"{ms:.3f}" for ms in times)])
    return table


def forms(report: Mapping[str, Any]) -> list[list[str]]:
    """A row for every form of the model in which it was run, and the batches beside it."""
    batches = report["forms"]
    head = "ms (times faster than dense; by processor time)"
    table = [["form", *(f"batch {batch}, {head}" for batch in batches)]]
    for form in next(iter(batches.values()))["ms"]:
        cells = (
            f"{b['ms'][form]:.3f} ({b['speedup'][form]:.2f}; {b['cpu_speedup'][form]:.2f})"
            for b in batches.values()
        )
        table.append([form, *cells])
    return table


def _smallest(found: Mapping[str, Any]) -> str:
    return "packed" if "packed" in found["ms"] else "shrunk"


def notes(report: Mapping[str, Any]) -> list[str]:
    """Sentences that belong under the table: what is compared, and what is not."""
    found = []
    if "speedup" in report:
        found.append(
            f"Packed, the sparse model is {report['speedup']:.2f} times as fast as dense; the two "
            f"took turns in one process, and their outputs differ by "
            f"{report['max_abs_difference']:.1e} at most."
        )
        found += [f"Not packed: {what}." for what in report["densified"]]
    for batch, measured in report.get("forms", {}).items():
        form = _smallest(measured)
        found.append(
            f"Batch {batch}: {form}, the model is {measured['speedup'][form]:.2f} times as fast as "
            f"dense; outputs differ by {measured['max_abs_difference']:.1e} at most."
        )
    if report["unmasked_step_ms"] and report["masked_step_ms"]:
        found.append(
            f"Training is dense throughout, zeros multiplied like other numbers: a step took "
            f"{report['unmasked_step_ms']:.2f} ms before the first masks and "
            f"{report['masked_step_ms']:.2f} ms after, which is no measure of sparsity."
        )
    if report["dense_until"]:
        found.append(
            f'"Dense" is the model after {report["dense_until"]:,} steps, before its first masks; '
            f'"sparse" has trained for {report["steps"] - report["dense_until"]:,} more.'
        )
    return found


def as_text(table: Sequence[Sequence[str]]) -> str:
    """Rows of cells as aligned text, the first column to the left."""
    lines = columned(table, {0})
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])


def as_paragraphs(sentences: Sequence[str], width: int = 79) -> str:
    """One sentence below the other, broken into lines."""
    return "\n".join(textwrap.fill(sentence, width) for sentence in sentences)
