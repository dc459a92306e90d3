"""The end of a run: weights, ``report.json`` and ``report.html``."""

import importlib.metadata
import math
import pathlib
import platform
import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

import jaxsparse as js
from experiments import config as configs
from experiments import latency, measurements, permutation, smaller, structure, tasks, workdir
from experiments.experiment import Experiment, TrainState
from jaxsparse.allocation.costs.fingerprint import threads
from jaxsparse.files import replacing
from jaxsparse.trees import leaves_by_path

_AGAIN = "start the run again with --overwrite"


def write(
    experiment: Experiment,
    state: TrainState,
    history: Sequence[Mapping[str, float]],
    folder: pathlib.Path,
    with_html: bool,
) -> None:
    """Writes weights.npz (exact zeros, frozen ones too), masks.npz, report.html, then report.json.

    The report holds ``dense_<metric>`` at the step before the first mask and
    ``sparse_<metric>`` at the end, on the held-out split (dense ones only where the
    recipe has a dense phase), ``sparsity`` of the pruned leaves, ``total_sparsity``
    of all, bytes, ``seconds``, a record per leaf and, of a masked model, what
    ``latency.measure`` finds, or ``smaller.measure`` where whole heads and neurons go.
    """
    masks = experiment.masks(state)
    params = js.mask_params(state.params, masks) if masks else state.params
    frozen = {path: leaves_by_path(state.extra)[path] for path in experiment.frozen}
    weights = {**leaves_by_path(params), **frozen}
    weights = {path: np.asarray(leaf) for path, leaf in weights.items()}
    masks = {path: np.asarray(mask) for path, mask in masks.items()}
    for name, arrays in (("weights.npz", weights), ("masks.npz", masks)):
        with replacing(folder / name) as file:
            np.savez(file, allow_pickle=False, **arrays)
    sparse = {"rules": experiment.rules, "targets": experiment.targets} if masks else {}
    table = js.report(params, masks, **sparse)
    report = _report(experiment, history, table)
    if experiment.resolve is not None:
        report |= smaller.measure(experiment, state)
        report["structure"] = workdir.read_json(folder / structure.NUMBERS, _AGAIN, list)
    elif masks:
        report |= latency.measure(experiment, state)
    if experiment.permute is not None:
        report["permutation"] = workdir.read_json(folder / permutation.NUMBERS, _AGAIN, list)
    if with_html:
        from experiments import page  # late: matplotlib, which only this needs

        text = page.build(report, history, masks, str(table), folder)
        workdir.write_text(folder / "report.html", text)
    workdir.write_json(folder / workdir.REPORT, report)


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
        "task": experiment.dataset.task,
        "headline": tasks.HEADLINE[experiment.dataset.task][0],
        **{f"dense_{name}": value for name, value in dense.items()},
        **{f"sparse_{name}": value for name, value in sparse.items()},
        "sparsity": counts["sparsity"],
        "total_sparsity": counts["total_sparsity"],
        "dense_parameters": counts["size"],
        "sparse_parameters": counts["kept"],
        "dense_bytes": counts["dense_bytes"],
        "sparse_bytes": counts["stored_bytes"],
        "dense_until": begin,
        "structure_at": experiment.recipe.structure_at,
        # The first record of a run holds the compilation.
        "unmasked_step_ms": _step_ms([r for r in history[1:] if r["step"] <= begin]),
        "masked_step_ms": _step_ms([r for r in history[1:] if r["step"] > begin]),
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
    return statistics.median(r["step_ms"] for r in records) if records else None


def environment() -> dict[str, str]:
    """Versions and the device: what a measurement depends on."""
    versions = {name: importlib.metadata.version(name) for name in ("jax", "flax", "optax")}
    return {
        "date": time.strftime("%Y-%m-%d"),
        "python": platform.python_version(),
        "jaxsparse": js.__version__,
        **versions,
        "device": f"{len(jax.devices())} x {jax.devices()[0].device_kind}",
        "processor": f"{threads()} cores, {measurements.processor()}",
    }
