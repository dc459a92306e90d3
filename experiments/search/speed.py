"""What a shrunk model takes beside the dense one: both in turn, in one process."""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxsparse as js
from experiments.data import Split
from experiments.timing import interleave


def measure(
    fn: Callable[[Any, Any], jax.Array],
    dense: Any,
    tree: Any,
    masks: Mapping[str, Any],
    split: Split,
    batch: int,
    rounds: int,
) -> dict[str, Any]:
    """Forward passes of the dense model and of one without the channels that are gone.

    Args:
      fn: (tree, inputs) -> outputs.
      dense, tree: weights of the dense model and of the masked one.
      masks: of the latter, by path.
      split: examples.
      batch: how many run together; repeated where there are fewer.
      rounds: how often each runs.

    Returns:
      By "dense" and "shrunk" `ms`, medians, and `cpu_ms`, of processor time; `speedup`, the median
      over rounds of how much faster the shrunk one is; `parameters` of both; and
      `max_abs_difference` of the outputs of the masked and the shrunk model.
    """
    inputs = jax.tree.map(jnp.asarray, split.take(np.arange(batch) % len(split)).inputs)
    small, run, report = js.graph.shrink(fn, tree, masks, inputs)
    forward, shrunk = jax.jit(fn), jax.jit(run)
    off = jnp.max(jnp.abs(forward(js.mask_params(tree, masks), inputs) - shrunk(small, inputs)))
    runs = {"dense": lambda: forward(dense, inputs), "shrunk": lambda: shrunk(small, inputs)}
    times = interleave(runs, rounds)
    processor = interleave(runs, rounds, clock=time.process_time)
    pairs = zip(times["dense"], times["shrunk"], strict=True)
    return {
        "batch": batch,
        "rounds": rounds,
        "ms": {name: 1e3 * statistics.median(each) for name, each in times.items()},
        "cpu_ms": {name: 1e3 * statistics.median(each) for name, each in processor.items()},
        "speedup": statistics.median(whole / less for whole, less in pairs),
        "parameters": {"dense": report.before, "shrunk": report.after},
        "max_abs_difference": float(off),
    }
