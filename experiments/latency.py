"""What packing buys the trained model here: the same outputs, and the time they take."""

import statistics
import time
import warnings
from typing import Any

import jax
import jax.numpy as jnp

import jaxsparse as js
from experiments.bench.timing import interleave
from experiments.experiment import Experiment, TrainState

_EXAMPLES, _SECONDS = 1024, 0.5


def measure(experiment: Experiment, state: TrainState) -> dict[str, Any]:
    """Runs the masked model dense and packed on one batch of held-out examples, in turn.

    Both are the same jitted function; the packed one goes through ``js.sparsify``.

    Args:
      experiment: a recipe that leaves masks.
      state: after training.

    Returns:
      ``latency_examples``, the size of the batch; ``dense_ms`` and ``sparse_ms``,
      medians over rounds that take turns; ``speedup``, the median ratio within a
      round; ``max_abs_difference`` of the outputs; ``densified``, what could not
      stay packed, in words.
    """
    masks = experiment.masks(state)
    params = js.mask_params(state.params, masks)
    packed = js.pack_params(params, masks, experiment.rules)
    split = experiment.dataset.test
    inputs = jax.tree.map(jnp.asarray, split.take(slice(0, _EXAMPLES)).inputs)
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
    rounds = max(5, min(300, int(_SECONDS / (time.perf_counter() - begin))))
    times = interleave(runs, rounds)
    pairs = zip(times["dense"], times["sparse"], strict=True)
    return {
        "latency_examples": min(_EXAMPLES, len(split)),
        "dense_ms": 1e3 * statistics.median(times["dense"]),
        "sparse_ms": 1e3 * statistics.median(times["sparse"]),
        "speedup": statistics.median(dense / sparse for dense, sparse in pairs),
        "max_abs_difference": float(jnp.max(jnp.abs(outputs["dense"] - outputs["sparse"]))),
        "densified": [str(warning.message) for warning in caught],
    }
