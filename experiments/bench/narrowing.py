"""Training a narrower network masked or really smaller: `python -m experiments.bench.narrowing`.

MobileNetV1 on 28 x 28 images, Adam, all groups of units at one share of their width. A masked
step runs at the whole size and is compiled once for all widths; a smaller one is first traced,
shrunk and compiled anew. Printed are CPU seconds of all threads, steps in turn in one process,
and after how many steps the smaller network has made up for its compilation.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

import jaxsparse as js
from experiments.measurements import write
from experiments.models.mobilenet import BLOCKS, MobileNet
from jaxsparse.timing import interleave

SIZE, CLASSES, DIVISOR = 28, 10, 8


def cpu_seconds(run: Callable[[], Any]) -> tuple[Any, float]:
    """What a function returns, and the CPU seconds that it took."""
    start = time.process_time()
    return run(), time.process_time() - start


def measure(share: float, batch: int, rounds: int) -> dict[str, Any]:
    """One row: every group at this share of its units, down to a multiple of eight."""
    graph, params, rest = nnx.split(
        MobileNet(1, 1.0, 2, BLOCKS, CLASSES, rngs=nnx.Rngs(0)), nnx.Param, ...
    )
    images = jax.random.normal(jax.random.key(0), (batch, SIZE, SIZE, 1))
    labels = jnp.arange(batch) % CLASSES
    optimizer = optax.adam(1e-3)

    def model(params, images):
        return nnx.merge(graph, params, rest)(images)

    def stepped(fn):
        def step(params, state, masks, images, labels):
            def loss(params):
                logits = fn(js.mask_params(params, masks), images)
                return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

            slopes = js.mask_params(jax.grad(loss)(params), masks)
            updates, state = optimizer.update(slopes, state, params)
            return js.mask_params(optax.apply_updates(params, updates), masks), state

        return step

    structure = js.graph.structure(model, params, images)
    widths = {
        group.name: max(DIVISOR, int(share * group.units) // DIVISOR * DIVISOR)
        for group in structure.groups
    }
    flops = js.allocation.Flops(model, params, images)
    masks = js.allocation.narrow(structure, params, widths)

    def compiled(fn, params, masks):
        state = optimizer.init(params)
        given = params, state, masks, images, labels
        program = jax.jit(stepped(fn)).lower(*given).compile()
        return lambda: program(*given)

    (small, run, _), shrinking = cpu_seconds(lambda: js.graph.shrink(model, params, masks, images))
    masked, _ = cpu_seconds(lambda: compiled(model, params, masks))
    smaller, compiling = cpu_seconds(lambda: compiled(run, small, {}))
    seconds = interleave({"masked": masked, "smaller": smaller}, rounds, clock=time.process_time)
    step = {name: statistics.median(times) for name, times in seconds.items()}
    saved = step["masked"] - step["smaller"]
    return {
        "MACs": round(flops.total(widths) / flops.total(), 3),
        "CPU seconds a step": {name: round(value, 4) for name, value in step.items()},
        "CPU seconds before": {"shrinking": round(shrinking, 1), "compiling": round(compiling, 1)},
        "even after steps": round((shrinking + compiling) / saved) if saved > 0 else None,
    }


def main() -> None:
    """Measures, prints the table, writes results/narrowing.json."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--shares", type=float, nargs="+", default=[0.95, 0.85, 0.7, 0.5])
    options = parser.parse_args()
    rows = []
    print(f"{'width':>6}{'MACs':>8}{'masked':>9}{'smaller':>9}{'before':>8}{'even after':>12}")
    for share in options.shares:
        row = {"width": share} | measure(share, options.batch, options.rounds)
        rows.append(row)
        step, before = row["CPU seconds a step"], sum(row["CPU seconds before"].values())
        print(
            f"{share:>6}{row['MACs']:>8}{step['masked']:>9.3f}{step['smaller']:>9.3f}"
            f"{before:>8.1f}{row['even after steps'] or 'never':>12}",
            flush=True,
        )
    command = f"python -m experiments.bench.narrowing --rounds {options.rounds}"
    print("written:", write("narrowing", {"command": command, "rows": rows}))


if __name__ == "__main__":
    main()
