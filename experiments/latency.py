"""What packing buys the trained model here: the same outputs, and the time they take."""

import statistics
import time
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxsparse as js
from experiments.experiment import Experiment, TrainState
from jaxsparse.timing import interleave

# A sequence is as much work as many a digit.
_EXAMPLES, _SEQUENCES, _SECONDS = 1024, 32, 1.0
_PERCENTILES = (5, 25, 50, 75, 95)


def measure(experiment: Experiment, state: TrainState) -> dict[str, Any]:
    """Runs the masked model dense and packed on one batch of held-out examples, in turn.

    Both are the same jitted function; the packed one goes through ``js.sparsify``.

    Args:
      experiment: a recipe that leaves masks.
      state: after training.

    Returns:
      ``latency_examples``, the size of the batch; ``dense_ms`` and ``sparse_ms``,
      medians over rounds that take turns; ``speedup``, the median ratio within a
      round; ``latency``, the number of ``rounds`` and the 5th, 25th, 50th, 75th and
      95th percentile of both; ``max_abs_difference`` of the outputs; ``densified``,
      what could not stay packed, in words.
    """
    masks = experiment.masks(state)
    params = js.mask_params(state.params, masks)
    packed = js.pack_params(params, masks, experiment.rules)
    split = experiment.dataset.test
    examples = min(_SEQUENCES if experiment.dataset.buckets else _EXAMPLES, len(split))
    inputs = jax.tree.map(jnp.asarray, split.take(slice(0, examples)).inputs)
    dense = jax.jit(experiment.forward)
    sparse = jax.jit(js.sparsify(experiment.forward))
    runs = {
        "dense": lambda: dense(params, state.extra, inputs),
        "sparse": lambda: sparse(packed, state.extra, inputs),
    }
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        outputs = {name: jax.block_until_ready(run()) for name, run in runs.items()}
    begin = time.perf_counter()
    jax.block_until_ready([run() for run in runs.values()])
    rounds = max(15, min(300, int(_SECONDS / (time.perf_counter() - begin))))
    times = interleave(runs, rounds)
    percentiles = {
        f"{name}_percentiles_ms": [1e3 * float(q) for q in np.percentile(seconds, _PERCENTILES)]
        for name, seconds in times.items()
    }
    pairs = zip(times["dense"], times["sparse"], strict=True)
    return {
        "latency_examples": examples,
        "dense_ms": percentiles["dense_percentiles_ms"][2],
        "sparse_ms": percentiles["sparse_percentiles_ms"][2],
        "speedup": statistics.median(dense / sparse for dense, sparse in pairs),
        "latency": {"rounds": rounds, **percentiles},
        "max_abs_difference": float(jnp.max(jnp.abs(outputs["dense"] - outputs["sparse"]))),
        "densified": [str(warning.message) for warning in caught],
    }
