"""The end of a run: weights, ``report.json``, ``report.html`` and the table."""

import importlib.metadata
import json
import math
import os
import pathlib
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

import jaxsparse as js
from experiments import config as configs
from experiments import figures, html, latency, permutation, tasks, workdir
from experiments.experiment import Experiment, TrainState
from jaxsparse.trees import leaves_by_path


def write(
    experiment: Experiment,
    state: TrainState,
    history: Sequence[Mapping[str, float]],
    folder: pathlib.Path,
    with_html: bool,
) -> None:
    """Writes weights.npz (exact zeros), masks.npz, report.html, then report.json.

    The report holds ``dense_<metric>`` at the step before the first mask and
    ``sparse_<metric>`` at the end, on the held-out split (dense ones only where the
    recipe has a dense phase), ``sparsity`` of the pruned leaves, ``total_sparsity``
    of all, bytes, ``seconds``, a record per leaf and, of a masked model, what
    ``latency.measure`` finds.
    """
    masks = experiment.masks(state)
    params = js.mask_params(state.params, masks) if masks else state.params
    weights = {path: np.asarray(leaf) for path, leaf in leaves_by_path(params).items()}
    masks = {path: np.asarray(mask) for path, mask in masks.items()}
    np.savez(folder / "weights.npz", allow_pickle=False, **weights)
    np.savez(folder / "masks.npz", allow_pickle=False, **masks)
    sparse = {"rules": experiment.rules, "targets": experiment.targets} if masks else {}
    table = js.report(params, masks, **sparse)
    report = _report(experiment, history, table)
    if masks:
        report |= latency.measure(experiment, state)
    if experiment.permute is not None:
        report["permutation"] = json.loads((folder / permutation.NUMBERS).read_text())
    if with_html:
        metric, _ = tasks.HEADLINE[experiment.dataset.task]
        drawn: dict[str, Any] = {
            f"Held-out {metric} and sparsity": figures.curves(
                history, metric, experiment.recipe.dense_until
            )
        }
        if masks:
            drawn["Density of the pruned leaves"] = figures.densities(
                [leaf for leaf in report["leaves"] if leaf["path"] in masks]
            )
            drawn["Masks"] = figures.mask_pictures(masks)
        texts = {}
        if experiment.permute is not None:
            texts["Magnitude that the permutation keeps"] = permutation.table(report["permutation"])
            drawn["Channels"] = (folder / permutation.PICTURE).read_bytes()
        title = f"{report['recipe']} on {report['data']}"
        page = html.render(title, rows(report), str(table), drawn, texts, report["config"])
        (folder / "report.html").write_text(page)
    workdir.write_json(folder / "report.json", report)


def _report(
    experiment: Experiment,
    history: Sequence[Mapping[str, float]],
    table: js.Report,
) -> dict[str, Any]:
    config, begin = experiment.config, experiment.recipe.dense_until
    counts = table.to_dict()
    sparse = _metrics(history, history[-1]["step"])
    dense = _metrics(history, begin) if begin else {}
    return {
        "recipe": config.recipe.name,
        "data": config.data.name,
        "model": config.model.name,
        "headline": tasks.HEADLINE[experiment.dataset.task][0],
        **{f"dense_{name}": value for name, value in dense.items()},
        **{f"sparse_{name}": value for name, value in sparse.items()},
        "sparsity": counts["sparsity"],
        "total_sparsity": counts["total_sparsity"],
        "dense_parameters": counts["size"],
        "sparse_parameters": counts["kept"],
        "dense_bytes": counts["dense_bytes"],
        "sparse_bytes": counts["stored_bytes"],
        "dense_step_ms": _step_ms([r for r in history if r["step"] <= begin]),
        "sparse_step_ms": _step_ms([r for r in history if r["step"] > begin]),
        "seconds": history[-1]["seconds"],
        "steps": config.steps,
        "train_examples": len(experiment.dataset.train),
        "test_examples": len(experiment.dataset.test),
        "source": experiment.dataset.source,
        "environment": environment(),
        "leaves": counts["leaves"],
        "config": configs.to_json(config),
    }


def _metrics(history: Sequence[Mapping[str, float]], step: float) -> dict[str, float | None]:
    """Held-out metrics of the record at a step; null where not finite, as JSON wants."""
    record = next(r for r in history if r["step"] == step)
    return {
        name.removeprefix("test_"): value if math.isfinite(value) else None
        for name, value in record.items()
        if name.startswith("test_")
    }


def _step_ms(records: Sequence[Mapping[str, float]]) -> float | None:
    # The median: the first record of a run holds the compilation.
    return statistics.median(r["step_ms"] for r in records) if records else None


def environment() -> dict[str, str]:
    """Versions and the device: what a measurement depends on."""
    versions = {name: importlib.metadata.version(name) for name in ("jax", "flax", "optax")}
    return {
        "date": time.strftime("%Y-%m-%d"),
        "python": platform.python_version(),
        "jaxsparse": js.__version__,
        **versions,
        "device": jax.devices()[0].device_kind,
        "processor": f"{os.cpu_count()} cores, {platform.machine()}",
    }


def rows(report: Mapping[str, Any]) -> list[list[str]]:
    """The table of a run: a header, then one row per quantity, dense against sparse."""

    def pair(name: str, form: Callable[[float], str], *keys: str) -> list[str]:
        values = (report.get(key) for key in keys)
        return [name, *("-" if value is None else form(value) for value in values)]

    metric = report["headline"]
    table = [["", "dense", "sparse"]]
    for name in dict.fromkeys(
        [metric, *(m for m in ("accuracy", "auc") if f"sparse_{m}" in report)]
    ):
        form = "{:.2%}".format if name == "accuracy" else "{:.4f}".format
        table.append(pair(f"held-out {name}", form, f"dense_{name}", f"sparse_{name}"))
    count = "{:,}".format
    table.append(pair("parameters", count, "dense_parameters", "sparse_parameters"))
    table.append(pair("bytes", count, "dense_bytes", "sparse_bytes"))
    table.append(["sparsity of the pruned leaves", "0.00%", f"{report['sparsity']:.2%}"])
    table.append(["sparsity of the model", "0.00%", f"{report['total_sparsity']:.2%}"])
    table.append(pair("training step, ms", "{:.2f}".format, "dense_step_ms", "sparse_step_ms"))
    if "speedup" in report:
        name = f"{report['latency_examples']} examples, ms"
        table.append(pair(name, "{:.3f}".format, "dense_ms", "sparse_ms"))
        table.append(["speed-up, packed against dense", "", f"{report['speedup']:.2f}x"])
        table.append(["largest difference of an output", "", f"{report['max_abs_difference']:.1e}"])
    table.append(["seconds in all", "", f"{report['seconds']:.1f}"])
    return table


def as_text(table: Sequence[Sequence[str]]) -> str:
    """Rows of cells as aligned text, the first column to the left."""
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip()
        for row in table
    ]
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])
