"""What serving a smaller model saves: `python -m experiments.bench.serving`.

The MiniLM encoder with a head, dense and shrunk, on texts of 64 tokens: in JAX, and as one
file of ONNX in ONNX Runtime and in OpenVINO, float32 and two threads for all three. Dense and
shrunk run in turn in one process. Printed are medians of the milliseconds, and how many times
faster than dense in the same runtime, by the clock and by processor time, which neighbours on
a shared machine disturb less. The weights are pretrained, the masks drawn by magnitude: what
is left decides the time, not which. `make test-onnx` makes the environment, .venv-onnx.
"""

import argparse
import os
import pathlib
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx

import jaxsparse as js
from experiments.data.download import DownloadError
from experiments.export import example
from experiments.huggingface.sources import load_any
from experiments.measurements import RESULTS, write
from experiments.models.encoders import Classifier, TextEncoder
from jaxsparse.timing import interleave
from jaxsparse.trees import leaves_by_path

Run = Callable[[], Any]
# Heads of twelve and the share of neurons that are left in every layer.
LEFT = {"shrunk to 44 %": (5, 0.45), "shrunk to 25 %": (3, 0.25), "shrunk to 12 %": (2, 0.1)}
BATCHES, TOKENS, THREADS, SECONDS, ROUNDS = (1, 32), 64, 2, 20.0, (7, 100)


def measure(
    models: Mapping[str, Callable[..., Any]],
    inputs: Callable[[int], tuple[Any, ...]],
    batches: Sequence[int] = BATCHES,
    seconds: float = SECONDS,
) -> dict[str, Any]:
    """Latencies of models in JAX and in the runtimes that are installed.

    Args:
      models: by name, the first of them what the others are compared with. Modules of nnx
        run everywhere, other functions of the inputs in JAX alone.
      inputs: batch -> inputs of the models.
      batches: how many examples at once.
      seconds: how long to measure each runtime and batch.

    Returns:
      ``rows``, each with ``runtime``, ``batch``, ``model``, ``ms``, ``speedup`` and
      ``cpu_speedup`` over the first model in this runtime, and ``max_abs_difference`` from
      the same model in JAX; ``missing``, runtimes that are not installed.
    """
    rows, missing = [], []
    with tempfile.TemporaryDirectory() as folder:
        for runtime, start in RUNTIMES.items():
            try:
                started = start(models, inputs, pathlib.Path(folder))
            except ImportError:
                missing.append(runtime)
                continue
            for batch in batches:
                rows += _rows(runtime, batch, started, models, inputs(batch), seconds)
    return {"rows": rows, "missing": missing}


def _rows(runtime, batch, started, models, inputs, seconds) -> list[dict[str, Any]]:
    runs = {name: bind(*inputs) for name, bind in started.items()}
    first = next(iter(runs))
    expected = {name: np.asarray(models[name](*inputs)) for name in runs}
    differences = {
        name: float(np.abs(np.asarray(run()) - expected[name]).max()) for name, run in runs.items()
    }
    once = sum(sum(times) for times in interleave(runs, 1).values())
    rounds = int(np.clip(seconds / 2 / once, *ROUNDS))
    clocks = {
        key: interleave(runs, rounds, clock=clock)
        for key, clock in (("speedup", time.perf_counter), ("cpu_speedup", time.process_time))
    }
    return [
        {
            "runtime": runtime,
            "batch": batch,
            "model": name,
            "ms": round(1e3 * statistics.median(clocks["speedup"][name]), 3),
            **{key: round(_faster(times, first, name), 2) for key, times in clocks.items()},
            "max_abs_difference": differences[name],
        }
        for name in runs
    ]


def _faster(times: Mapping[str, list[float]], first: str, name: str) -> float:
    return statistics.median(a / b for a, b in zip(times[first], times[name], strict=True))


def _in_jax(models, inputs, folder):
    del inputs, folder
    return {name: _jitted(model) for name, model in models.items()}


def _jitted(model):
    if isinstance(model, nnx.Module):
        graph, state = nnx.split(model)
        run = jax.jit(lambda state, *inputs: nnx.merge(graph, state)(*inputs))
        return lambda *inputs: lambda: run(state, *inputs)
    run = jax.jit(model)
    return lambda *inputs: lambda: run(*inputs)


def _files(models, inputs, folder):
    """A file of ONNX for every module."""
    for number, (name, model) in enumerate(models.items()):
        if isinstance(model, nnx.Module):
            file = folder / f"{number}.onnx"
            if not file.exists():
                js.export_onnx(model, *inputs(2), path=file)
            yield name, file


def _in_onnx_runtime(models, inputs, folder):
    import onnxruntime  # pyright: ignore[reportMissingImports]

    def load(file):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = THREADS
        # A thread that spins for work takes what its neighbours would need.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        names = [value.name for value in session.get_inputs()]

        def bind(*inputs):
            given = dict(zip(names, map(np.asarray, inputs), strict=True))
            return lambda: session.run(None, given)[0]

        return bind

    return {name: load(file) for name, file in _files(models, inputs, folder)}


def _in_openvino(models, inputs, folder):
    import openvino  # pyright: ignore[reportMissingImports]

    # Where the processor has bfloat16 it is what OpenVINO computes in, unless it is told.
    options = {
        "INFERENCE_PRECISION_HINT": "f32",
        "INFERENCE_NUM_THREADS": THREADS,
        "PERFORMANCE_HINT": "LATENCY",
    }

    def load(file):
        compiled = openvino.compile_model(file, "CPU", options)
        request = compiled.create_infer_request()

        def bind(*inputs):
            given = list(map(np.asarray, inputs))
            return lambda: request.infer(given)[compiled.output(0)]

        return bind

    return {name: load(file) for name, file in _files(models, inputs, folder)}


RUNTIMES = {"JAX": _in_jax, "ONNX Runtime": _in_onnx_runtime, "OpenVINO": _in_openvino}


def shrunk(model: Classifier, heads: int, share: float) -> nnx.Module:
    """The model with its largest heads and neurons, by the norm of what writes them.

    Args:
      model: a classifier of text.
      heads: left in every layer.
      share: of the neurons that is left in every layer.
    """
    masks: dict[str, np.ndarray] = {}
    encoder = model.encoder
    assert isinstance(encoder, TextEncoder)
    for index, layer in enumerate(encoder.layers):
        path = f"encoder/layers/{index}"
        value, up = (np.asarray(m.kernel[...]) for m in (layer.attention.value, layer.intermediate))
        by_head = (value**2).sum(0).reshape(-1, layer.attention.head_dim).sum(1)
        kept = np.repeat(_largest(by_head, heads), layer.attention.head_dim)
        for part in ("query", "key", "value"):
            masks[f"{path}/attention/{part}/kernel"] = np.broadcast_to(kept, value.shape)
            masks[f"{path}/attention/{part}/bias"] = kept
        neurons = _largest((up**2).sum(0), round(share * up.shape[1]))
        masks[f"{path}/intermediate/kernel"] = np.broadcast_to(neurons, up.shape)
        masks[f"{path}/intermediate/bias"] = neurons
    small, _ = js.graph.shrink_model(model, masks, *example(model, 2, 8))
    return small


def _largest(numbers: np.ndarray, count: int) -> np.ndarray:
    kept = np.zeros(numbers.size, bool)
    kept[np.argsort(-numbers, kind="stable")[:count]] = True
    return kept


def linear_weights(model: nnx.Module) -> int:
    """Entries of the kernels of a model's layers."""
    leaves = leaves_by_path(nnx.state(model, nnx.Param))
    return sum(x.size for path, x in leaves.items() if "/layers/" in path and x.ndim == 2)


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """A line for every model and runtime: milliseconds, times faster, and that by CPU time."""
    batches = list(dict.fromkeys(row["batch"] for row in rows))
    table = [["model", "in", *(f"batch {batch}" for batch in batches)]]
    table.append(["---"] * len(table[0]))
    found = {(row["model"], row["runtime"], row["batch"]): row for row in rows}
    for model, runtime in dict.fromkeys(key[:2] for key in found):
        cells = [found[model, runtime, batch] for batch in batches]
        table.append(
            [
                model,
                runtime,
                *(f"{c['ms']:.1f} ms, {c['speedup']:.1f} ({c['cpu_speedup']:.1f})" for c in cells),
            ]
        )
    return "".join(f"| {' | '.join(line)} |\n" for line in table)


def main() -> None:
    """Measures, prints the table, writes results/serving.json and serving.md."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=SECONDS)
    options = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):  # JAX takes the threads that there are
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:THREADS])
    try:
        encoder, _ = load_any("minilm")
    except DownloadError as error:
        sys.exit(f"error: {error}")
    assert isinstance(encoder, TextEncoder)
    dense = Classifier(encoder, 1, rngs=nnx.Rngs(0))
    models = {"dense": dense} | {name: shrunk(dense, *left) for name, left in LEFT.items()}
    whole = linear_weights(dense)
    left = {name: round(linear_weights(model) / whole, 3) for name, model in models.items()}
    found = measure(models, lambda n: example(dense, n, TOKENS), seconds=options.seconds)
    print(left)
    print(table := markdown(found["rows"]))
    if found["missing"]:
        print("not installed:", ", ".join(found["missing"]))
        return
    command = f"python -m experiments.bench.serving --seconds {options.seconds:g}"
    head = {"command": command, "threads": THREADS, "tokens": TOKENS, "linear weights left": left}
    (RESULTS / "serving.md").write_text(table)
    print("written:", write("serving", head | {"rows": found["rows"]}))


if __name__ == "__main__":
    main()
