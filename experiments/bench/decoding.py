"""Tokens per second that packed weights write: `python -m experiments.bench.decoding`.

A decoder at the sizes of SmolLM2-135M with random weights, pruned by magnitude, goes on with
one text of 8 tokens, batch 1, two threads; dense and packed take turns in one process. Printed
are medians of the tokens per second, the prompt's own pass among them, and how many times
faster than dense bfloat16 and than dense float32, by the clock and by processor time, which
neighbours on a shared machine disturb less. Weights decide no time, only how many are left.
What is linear in the layers is pruned; the embeddings, which are the head, stay dense.
"""

import argparse
import functools
import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

import jaxsparse as js
from experiments.measurements import RESULTS, write
from experiments.models.generation import generate
from experiments.models.llama import LINEAR, Llama
from experiments.models.sizes import LlamaSizes
from jaxsparse.timing import interleave

SMOLLM2 = LlamaSizes(
    width=576,
    head_dim=64,
    heads=(9,) * 30,
    hidden=(1536,) * 30,
    epsilon=1e-5,
    activation="silu",
    vocabulary=49152,
    longest=8192,
    key_heads=(3,) * 30,
    theta=1e5,
    tied=True,
)
# Pattern, sparsity where the pattern has none of its own, dtypes of the values.
PACKED = {
    "2:4": (js.NM(2, 4), None, ("bfloat16", "int8")),
    "50 % unstructured": (js.Unstructured(), 0.5, ("bfloat16", "float32", "int8")),
    "30 % in 4x16 blocks": (js.Block(4, 16), 0.3, ("bfloat16",)),
}
BASES = ("dense bfloat16", "dense float32")
PROMPT, NEW, THREADS, ROUNDS = 8, 128, 2, 7


def measure(
    runs: Mapping[str, Callable[[], Any]],
    tokens: int,
    bases: Sequence[str] = BASES,
    rounds: int = ROUNDS,
) -> list[dict[str, Any]]:
    """How fast texts are written, by several models in turn.

    Args:
      runs: by name, what writes a text and is compiled by now.
      tokens: how many each of them writes.
      bases: names of runs that all are compared with.
      rounds: how often each runs on each of the two clocks.

    Returns:
      A row for every run: `model`, `tokens_per_second` by the clock, `cpu_ms` a token of all
      threads together, and by base `speedup` and `cpu_speedup`, medians of the ratios of one
      round. A base below 1 is one that the model loses against.

    Raises:
      ValueError: a base that is not among the runs.
    """
    if missing := [base for base in bases if base not in runs]:
        raise ValueError(f"bases {missing} are not among the runs {list(runs)}")
    wall, cpu = (
        interleave(runs, rounds, clock=clock) for clock in (time.perf_counter, time.process_time)
    )
    return [
        {
            "model": name,
            "tokens_per_second": round(tokens / statistics.median(wall[name]), 2),
            "cpu_ms": round(1e3 * statistics.median(cpu[name]) / tokens, 3),
            "speedup": {base: _faster(wall, base, name) for base in bases},
            "cpu_speedup": {base: _faster(cpu, base, name) for base in bases},
        }
        for name in runs
    ]


def _faster(times: Mapping[str, list[float]], base: str, name: str) -> float:
    found = statistics.median(a / b for a, b in zip(times[base], times[name], strict=True))
    return round(found, 2)


def models(sizes: LlamaSizes) -> Iterator[tuple[str, Any, Any]]:
    """Every model as its name, the graph and the parameters of `nnx.split`, dense ones first."""
    graph, params = nnx.split(Llama(sizes, rngs=nnx.Rngs(0)))
    for name in BASES:
        dtype = name.removeprefix("dense ")
        yield name, graph, jax.tree.map(functools.partial(jnp.asarray, dtype=dtype), params)
    for kind, (pattern, sparsity, dtypes) in PACKED.items():
        rules = [js.Rule(LINEAR, pattern, sparsity=sparsity)]
        masks = js.compute_masks(params, rules)
        for dtype in dtypes:
            # What is not packed is in bfloat16 too, but where all is float32.
            rest = "float32" if dtype == "float32" else "bfloat16"
            dense = jax.tree.map(functools.partial(jnp.asarray, dtype=rest), params)
            yield f"{kind} {dtype}", graph, js.pack_params(dense, masks, rules, dtype=dtype)


def writer(graph: Any, params: Any, prompt: jax.Array, new: int) -> Callable[[], jax.Array]:
    """What writes `new` tokens after a prompt, compiled by now; weights may be packed."""

    def write_on(params: Any, prompt: jax.Array) -> jax.Array:
        return generate(nnx.merge(graph, params), prompt, new)

    run = jax.jit(js.sparsify(write_on)).lower(params, prompt).compile()
    return lambda: run(params, prompt)


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """A line for every model: tokens per second, and times faster, by CPU time in brackets."""
    bases = list(rows[0]["speedup"])
    table = [["weights", "tokens/s", "CPU ms a token", *(f"against {base}" for base in bases)]]
    table.append(["---"] * len(table[0]))
    for row in rows:
        ratios = [f"{row['speedup'][b]:.2f} ({row['cpu_speedup'][b]:.2f})" for b in bases]
        numbers = f"{row['tokens_per_second']:.1f}", f"{row['cpu_ms']:.1f}"
        table.append([row["model"], *numbers, *ratios])
    return "".join(f"| {' | '.join(line)} |\n" for line in table)


def main() -> None:
    """Measures, prints the table, writes results/decoding.json and decoding.md."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--new", type=int, default=NEW, help="tokens that are written")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    options = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):  # JAX takes the threads that there are
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:THREADS])
    prompt = jax.random.randint(jax.random.key(0), (1, PROMPT), 0, SMOLLM2.vocabulary)
    runs = {
        name: writer(graph, params, prompt, options.new) for name, graph, params in models(SMOLLM2)
    }
    rows = measure(runs, options.new, rounds=options.rounds)
    print(table := markdown(rows))
    command = f"python -m experiments.bench.decoding --new {options.new} --rounds {options.rounds}"
    (RESULTS / "decoding.md").write_text(table)
    head = {"command": command, "threads": THREADS, "prompt": PROMPT, "new": options.new}
    print("written:", write("decoding", head | {"rows": rows}))


if __name__ == "__main__":
    main()
