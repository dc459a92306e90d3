"""How well a table of latency predicts networks: `python -m experiments.bench.latency_table`.

An MLP of 784-1024-1024-1024-10 on 64 examples, MobileNetV1 (the first seven blocks) on 8 images
of 28 x 28 and a transformer of four layers on 128 tokens. Every product is measured once, at a
quarter, a half, three quarters and all of the units; then whole networks run in turn with the
dense one: shrunk to these widths, and packed. Printed are predicted and measured milliseconds and
their error, as it is and beside dense; the acceptance is an error of 15 %.

On a machine that others use, `taskset -c 0 ... --clock process` counts the CPU seconds of one
thread, which others' work changes less than it does the time of day.
"""

import argparse
import pathlib
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import jaxsparse as js
from experiments.bench.shrink import transformer
from experiments.bench.transforms import VOCABULARY, init_params
from experiments.measurements import write
from experiments.models.mobilenet import BLOCKS, MobileNet

SHARES = (0.75, 0.5, 0.25)
DENSITIES = (0.5, 0.2)
PATTERNS = {"4x16 blocks": js.Block(4, 16), "single weights": js.Unstructured()}
CLOCKS = {"wall": time.perf_counter, "process": time.process_time}
LIMIT = 0.15

Case = tuple[Callable[..., Any], Any, jax.Array, str]


def mlp() -> Case:
    """Four dense layers."""

    def apply(params, x):
        for layer in params["hidden"]:
            x = jax.nn.relu(x @ layer["kernel"] + layer["bias"])
        return x @ params["head"]

    keys = iter(jax.random.split(jax.random.key(0), 8))
    sizes = ((784, 1024), (1024, 1024), (1024, 1024))
    hidden = [
        {"kernel": jax.random.normal(next(keys), shape) * shape[0] ** -0.5, "bias": jnp.zeros(1024)}
        for shape in sizes
    ]
    params = {"hidden": hidden, "head": jax.random.normal(next(keys), (1024, 10)) / 32}
    return apply, params, jax.random.normal(next(keys), (64, 784)), r"hidden/\d/kernel"


def mobilenet() -> Case:
    """Depthwise and pointwise convolutions."""
    graph, params = nnx.split(MobileNet(1, 1.0, 1, BLOCKS[:7], 10, rngs=nnx.Rngs(0)))
    x = jax.random.normal(jax.random.key(0), (8, 28, 28, 1))
    return lambda params, x: nnx.merge(graph, params)(x), params, x, r".*/pointwise/kernel"


def attention() -> Case:
    """The decoder of `experiments.bench.shrink`."""
    tokens = jax.random.randint(jax.random.key(0), (1, 128), 0, VOCABULARY)
    return transformer, init_params(jax.random.key(1)), tokens, r".*/(qkv|out|up|down)/kernel"


CASES = {"mlp": mlp, "mobilenet": mobilenet, "transformer": attention}


def networks(case: Case, pattern: js.Pattern | None) -> dict[str, js.allocation.Network]:
    """Shrunk networks, or with a pattern packed ones."""
    fn, params, x, pruned = case
    found = {}
    if pattern is None:
        structure = js.graph.structure(fn, params, x)
        for share in SHARES:
            widths = {group.name: round(group.units * share) for group in structure.groups}
            masks = js.allocation.narrow(structure, params, widths)
            small, run, _ = js.graph.shrink(fn, params, masks, x)
            call, name = jax.jit(run), f"shrunk to {share:.0%} of the units"
            found[name] = js.allocation.Network(lambda c=call, p=small: c(p, x), widths)
        return found
    rules = js.read_axes([js.Rule(pruned, pattern)], fn, params, x)
    for density in DENSITIES:
        masks = js.compute_masks(params, rules, sparsity=1 - density)
        packed = js.pack_params(params, masks, rules)
        call, densities = jax.jit(js.sparsify(fn)), dict.fromkeys(masks, density)
        name = f"{density:.0%} kept, {pattern}"
        run = js.allocation.Network(lambda c=call, p=packed: c(p, x), densities=densities)
        found[name] = run
    return found


def measure(name: str, table: js.allocation.LatencyTable, rounds: int) -> dict[str, Any]:
    """Prints and returns the reports of one model: shrunk, and by each pattern."""
    case = CASES[name]()
    fn, params, x, pruned = case
    found = {}
    for kind, pattern in {"shrunk": None, **PATTERNS}.items():
        rules = [] if pattern is None else [js.Rule(pruned, pattern)]
        begin, before = time.perf_counter(), len(table.entries)
        latency = js.allocation.Latency(table, fn, params, x, rules=rules, steps=4)
        report = js.allocation.latency_report(latency, networks(case, pattern), rounds=rounds)
        seconds, entries = time.perf_counter() - begin, len(table.entries) - before
        print(f"\n{name}, {kind}: {entries} entries and the report in {seconds:.0f} s\n{report}")
        found[kind] = report.to_dict() | {"entries": entries, "seconds": round(seconds, 1)}
    return found


def main() -> None:
    """Measures, prints the tables, writes results/latency_table.json."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--table", type=pathlib.Path, help="a file to go on with")
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--rounds", type=int, default=25, help="of which medians count")
    options = parser.parse_args()
    table = js.allocation.LatencyTable(
        options.table, rounds=options.rounds, clock=CLOCKS[options.clock]
    )
    found = {name: measure(name, table, options.rounds) for name in options.models}
    errors = [
        row for kinds in found.values() for report in kinds.values() for row in report["rows"]
    ]
    for key in ("error", "error_beside_dense"):
        worst = [abs(row[key]) for row in errors]
        within = sum(error <= LIMIT for error in worst)
        print(
            f"\n{key.replace('_', ' ')}: {within} of {len(worst)} networks within {LIMIT:.0%}, "
            f"median {np.median(worst):.1%}, worst {max(worst):.1%}"
        )
    path = write("latency_table", {"clock": options.clock, "rounds": options.rounds} | found)
    print(f"\n{path}")


if __name__ == "__main__":
    main()
