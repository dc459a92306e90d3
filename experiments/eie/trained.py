"""Layers of a finished run as EIE would hold them: real weights, real activations."""

import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from experiments import data, workdir
from jaxsparse.activations import eie

EXAMPLES = 64  # held out, of which cycles are counted
DEPTH = 8


def count(folder: pathlib.Path, pes: int) -> dict[str, Any]:
    """What the layers of an MLP take, and what four bits a weight cost it.

    Args:
      folder: of a finished run.
      pes: processing elements.

    Returns:
      The run's data, accuracy with its own weights and with coded ones, and a row a layer.

    Raises:
      ValueError: the run is not finished, or not of an MLP that classifies a single array.
    """
    if not workdir.finished(folder):
        raise ValueError(f"{folder} holds no finished run; python -m experiments.run makes one")
    config = workdir.read_report(folder)["config"]
    if config["model"]["name"] != "mlp":
        raise ValueError(
            f"{folder} is a run of the model {config['model']['name']!r}; one of 'mlp' would work"
        )
    dataset = data.load(**config["data"])
    if dataset.task != "classification":
        raise ValueError(f"{folder} is a run of the task {dataset.task}, needs classification")
    with np.load(folder / "weights.npz") as file:
        weights = dict(file)
    inputs = np.asarray(dataset.test.inputs, np.float32).reshape(len(dataset.test), -1)
    coded, rows = dict(weights), []
    met = dict(zip(_kernels(weights), _activations(weights, inputs)[0], strict=True))
    for path, x in met.items():
        row, coded[path] = _layer(weights[path], x, pes)
        rows.append({"layer": path} | row)
    return {
        "data": dataset.source,
        "accuracy": _accuracy(weights, inputs, dataset.test.labels),
        "coded_accuracy": _accuracy(coded, inputs, dataset.test.labels),
        "examples": min(EXAMPLES, len(inputs)),
        "layers": rows,
    }


def _kernels(weights: Mapping[str, np.ndarray]) -> list[str]:
    found = [path for path in weights if path.endswith("/kernel")]
    return sorted(found, key=lambda path: int(path.split("/")[0].rpartition("_")[2]))


def _activations(
    weights: Mapping[str, np.ndarray], inputs: np.ndarray
) -> tuple[list[np.ndarray], np.ndarray]:
    """What each layer reads, and what the last one gives."""
    met, x = [], inputs
    for path in _kernels(weights):
        met.append(x if not met else np.maximum(x, 0))
        x = met[-1] @ weights[path] + weights[path.replace("kernel", "bias")]
    return met, x


def _accuracy(weights: Mapping[str, np.ndarray], inputs: np.ndarray, labels: Any) -> float:
    logits = _activations(weights, inputs)[1]
    return float(np.mean(logits.argmax(1) == labels))


def _layer(kernel: np.ndarray, x: np.ndarray, pes: int) -> tuple[dict[str, Any], np.ndarray]:
    """A row, and the kernel as its codes say it."""
    codes, book = eie.quantize(kernel.T)  # a row of EIE's matrix is an output
    matrix = eie.encode(codes, pes)
    runs = [eie.simulate(matrix.work(example), DEPTH) for example in x[:EXAMPLES]]
    busy = [run for run in runs if run.cycles]
    bits = eie.storage_bits(matrix)
    row = {
        "shape": list(kernel.shape),
        "weight_density": float(np.mean(kernel != 0)),
        "activation_density": float(np.mean(x != 0)),
        "padding": matrix.padding / max(1, matrix.nonzeros),
        "bits": bits._asdict(),
        "bits_per_weight": bits.total / kernel.size,
        "cycles": float(np.mean([run.cycles for run in runs])),
        "efficiency": float(np.mean([run.efficiency for run in busy])) if busy else None,
    }
    return row, book[codes].T.astype(kernel.dtype)
