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
from jaxsparse.allocation import Latency, Network, latency_report
from jaxsparse.timing import interleave


def measure(
    fn: Callable[[Any, Any], jax.Array],
    dense: Any,
    tree: Any,
    masks: Mapping[str, Any],
    split: Split,
    batch: int,
    rounds: int,
    latency: Latency | None = None,
    widths: Mapping[str, int] | None = None,
) -> dict[str, Any]:
    """Forward passes of the dense model and of one without the channels that are gone.

    Args:
      fn: (tree, inputs) -> outputs.
      dense, tree: weights of the dense model and of the masked one.
      masks: of the latter, by path.
      split: examples.
      batch: how many run together; repeated where there are fewer.
      rounds: how often each runs.
      latency: of the dense model and that batch; None predicts nothing.
      widths: of the shrunk model.

    Returns:
      By "dense" and "shrunk" `ms`, medians, and `cpu_ms`, of processor time; `speedup`, the median
      over rounds of how much faster the shrunk one is; `parameters` of both;
      `max_abs_difference` of the outputs of the masked and the shrunk model; and as `predicted`
      what the table of latency says of the shrunk one, beside what it took right then.
    """
    inputs = batch_of(split, batch)
    small, run, report = js.graph.shrink(fn, tree, masks, inputs)
    forward, shrunk = jax.jit(fn), jax.jit(run)
    off = jnp.max(jnp.abs(forward(js.mask_params(tree, masks), inputs) - shrunk(small, inputs)))
    runs = {"dense": lambda: forward(dense, inputs), "shrunk": lambda: shrunk(small, inputs)}
    times = interleave(runs, rounds)
    processor = interleave(runs, rounds, clock=time.process_time)
    pairs = zip(times["dense"], times["shrunk"], strict=True)
    found = {
        "batch": batch,
        "rounds": rounds,
        "ms": {name: 1e3 * statistics.median(each) for name, each in times.items()},
        "cpu_ms": {name: 1e3 * statistics.median(each) for name, each in processor.items()},
        "speedup": statistics.median(whole / less for whole, less in pairs),
        "parameters": {"dense": report.before, "shrunk": report.after},
        "max_abs_difference": float(off),
    }
    if latency is not None:
        network = Network(runs["shrunk"], widths or {})
        dense_row, row = latency_report(latency, {"shrunk": network}, rounds=rounds).rows
        found["predicted"] = {
            "dense_ms": dense_row.predicted,
            "dense_measured_ms": dense_row.measured,
            "found_ms": row.predicted,
            "measured_ms": row.measured,
            "error": row.error,
            "error_beside_dense": row.error_beside_dense,
        }
    return found


def batch_of(split: Split, count: int) -> Any:
    """Inputs of so many examples, repeated where there are fewer."""
    return jax.tree.map(jnp.asarray, split.take(np.arange(count) % len(split)).inputs)
