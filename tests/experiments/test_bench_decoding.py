"""Tokens per second: every model writes a text of its own weights, and every base is there."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxsparse as js
from experiments.bench import decoding
from experiments.models.generation import generate

TINY = dataclasses.replace(
    decoding.SMOLLM2,
    width=32,
    head_dim=16,
    heads=(2,),
    hidden=(32,),
    key_heads=(1,),
    vocabulary=40,
    longest=16,
)


@pytest.mark.slow
def test_every_model_is_measured_and_writes_what_its_unpacked_weights_would():
    prompt = jnp.asarray([[3, 1, 4]])
    runs = {}
    for name, graph, params in decoding.models(TINY):
        runs[name] = decoding.writer(graph, params, prompt, 4)
        if name.endswith("float32"):
            dense = nnx.merge(graph, js.unpack_params(params))
            np.testing.assert_array_equal(runs[name](), generate(dense, prompt, 4))
    assert len(runs) == 2 + sum(len(dtypes) for *_, dtypes in decoding.PACKED.values())
    rows = decoding.measure(runs, 4, rounds=1)
    assert [row["model"] for row in rows] == list(runs)
    assert all(row["speedup"][row["model"]] == 1 for row in rows[:2])


def test_a_base_that_is_not_measured_is_refused_before_anything_runs():
    with pytest.raises(ValueError, match=r"\['dense float32'\] are not among the runs"):
        decoding.measure({"dense bfloat16": pytest.fail}, 4)


def test_the_table_has_a_line_for_a_model_with_losing_cells():
    ratios = {"dense bfloat16": 0.5, "dense float32": 0.4}
    row = {"model": "2:4 int8", "tokens_per_second": 20.04, "cpu_ms": 9.96, "speedup": ratios}
    table = decoding.markdown([row | {"cpu_speedup": ratios}])
    assert table.splitlines()[2] == "| 2:4 int8 | 20.0 | 10.0 | 0.50 (0.50) | 0.40 (0.40) |"
