"""Latencies in the runtimes: every row is there, and every runtime computes the same."""

import importlib.util

import numpy as np
import pytest
from flax import nnx
from test_huggingface import CASES

from experiments import huggingface
from experiments.bench import serving
from experiments.export import example
from experiments.models.encoders import Classifier

PACKAGES = {"ONNX Runtime": ("jax2onnx", "onnxruntime"), "OpenVINO": ("jax2onnx", "openvino")}
pytestmark = pytest.mark.filterwarnings("ignore:os.fork:RuntimeWarning")  # of a runtime


@pytest.mark.slow
def test_every_runtime_that_is_there_runs_dense_and_shrunk():
    dense = Classifier(huggingface.load(CASES / "bert"), 1, rngs=nnx.Rngs(0))
    small = serving.shrunk(dense, heads=2, share=0.5)
    assert serving.linear_weights(small) == 0.5 * serving.linear_weights(dense)
    models = {"dense": dense, "small": small, "function": lambda *inputs: small(*inputs)}
    found = serving.measure(models, lambda n: example(dense, n, 6), batches=(1, 3), seconds=0)
    present = [
        name for name, needed in PACKAGES.items() if all(map(importlib.util.find_spec, needed))
    ]
    assert set(found["missing"]) == set(PACKAGES) - set(present)
    keys = [(row["runtime"], row["batch"], row["model"]) for row in found["rows"]]
    expected = [(runtime, n, m) for runtime in present for n in (1, 3) for m in ("dense", "small")]
    assert keys == [("JAX", n, m) for n in (1, 3) for m in models] + expected
    assert max(row["max_abs_difference"] for row in found["rows"]) < 1e-4
    assert next(row["speedup"] for row in found["rows"] if row["model"] == "dense") == 1


def test_shrunk_keeps_the_largest():
    numbers = np.array([3.0, 1.0, 2.0])
    assert serving._largest(numbers, 2).tolist() == [True, False, True]


def test_the_table_has_a_line_for_a_model_in_a_runtime():
    row = {"runtime": "JAX", "model": "dense", "ms": 2.04, "speedup": 1.0, "cpu_speedup": 0.96}
    table = serving.markdown([{**row, "batch": 1}, {**row, "batch": 32}])
    assert table.splitlines()[2] == "| dense | JAX | 2.0 ms, 1.0 (1.0) | 2.0 ms, 1.0 (1.0) |"
