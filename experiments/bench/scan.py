"""What a scan of sensitivities costs: `python -m experiments.bench.scan`.

55 cells, eleven weights at five ratios, against 55 plain evaluations of the same compiled
function, in turn in one process and by the processor time of this process. Beside them what
the scan takes as a whole: scores, their order, tracing and its one compilation.
"""

import argparse
import itertools
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax

import jaxsparse as js
from experiments.measurements import write
from jaxsparse.timing import interleave, ratios

RATIOS = (0.1, 0.3, 0.5, 0.7, 0.9)
CHANNELS = (1, 8, 8, 8, 16, 16, 16, 16, 32, 32, 32)
STRIDED = (3, 6)
CLASSES = 10

Weights = dict[str, jax.Array]
Apply = Callable[[Weights, jax.Array], jax.Array]


def drawn(shapes: Sequence[tuple[int, ...]]) -> Weights:
    """Weights by a number of two digits, whose outputs keep their variance through ReLU."""
    keys = jax.random.split(jax.random.key(0), len(shapes))
    return {
        f"{number:02}": jax.random.normal(key, shape) * (2 / math.prod(shape[:-1])) ** 0.5
        for number, (key, shape) in enumerate(zip(keys, shapes, strict=True))
    }


def dense_layers(width: int) -> tuple[Weights, Apply]:
    """Eleven dense layers with ReLU between them."""

    def apply(weights, x):
        *hidden, head = weights.values()
        for weight in hidden:
            x = jax.nn.relu(x @ weight)
        return x @ head

    return drawn([(width, width)] * 10 + [(width, CLASSES)]), apply


def convolutions() -> tuple[Weights, Apply]:
    """Ten 3x3 convolutions with ReLU behind them, a mean over places and a dense layer."""

    def apply(weights, x):
        *hidden, head = weights.values()
        for number, weight in enumerate(hidden):
            strides = (2, 2) if number in STRIDED else (1, 1)
            layout = ("NHWC", "HWIO", "NHWC")
            conv = jax.lax.conv_general_dilated
            x = jax.nn.relu(conv(x, weight, strides, "SAME", dimension_numbers=layout))
        return x.mean((1, 2)) @ head

    pairs = list(itertools.pairwise(CHANNELS))
    return drawn([(3, 3, *pair) for pair in pairs] + [(CHANNELS[-1], CLASSES)]), apply


def measure(name: str, model: tuple[Weights, Apply], shape: tuple[int, ...], rounds: int) -> Any:
    """A row of the results; `shape` is (batches, examples, ...)."""
    weights, apply = model
    inputs = jax.random.normal(jax.random.key(1), shape)

    def evaluate(weights, batch):
        x, labels = batch
        return apply(weights, x).argmax(-1) == labels

    plain = jax.jit(evaluate)
    batches = [(x, apply(weights, x).argmax(-1)) for x in inputs]
    rules = [js.Rule(".*", js.Unstructured())]
    start = time.process_time()
    table = js.allocation.scan(evaluate, weights, rules, RATIOS, batches=batches, better="higher")
    whole = time.process_time() - start
    cell_of = table.measure
    assert cell_of is not None
    targets = {path: curve.target for path, curve in table.curves.items()}
    cells = [
        {path: target.units - target.kept(ratio)}
        for path, target in targets.items()
        for ratio in RATIOS
    ]
    seconds = interleave(
        {
            "cells": lambda: [cell_of(cell) for cell in cells],
            "plain": lambda: [
                jax.device_get([plain(weights, batch) for batch in batches]) for _ in cells
            ],
        },
        rounds,
        clock=time.process_time,
    )
    return {
        "model": name,
        "inputs": list(shape),
        "weights": sum(weight.size for weight in weights.values()),
        "cells": len(cells),
        "ratio to plain": round(ratios(seconds, "plain")["cells"], 3),
        "plain ms an evaluation": round(
            1e3 * sorted(seconds["plain"])[rounds // 2] / len(cells), 3
        ),
        "whole scan, s": round(whole, 3),
    }


def main() -> None:
    """Measures, prints the rows, writes results/scan.json."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    rows = [
        measure("ten convolutions", convolutions(), (1, 256, 28, 28, 1), rounds),
        measure("eleven dense layers", dense_layers(256), (4, 256, 256), rounds),
        measure("eleven dense layers", dense_layers(256), (1, 1024, 256), rounds),
        measure("eleven dense layers", dense_layers(256), (1, 64, 256), rounds),
        measure("eleven dense layers", dense_layers(32), (1, 512, 32), rounds),
    ]
    for row in rows:
        print(*(f"{name} {value}" for name, value in row.items()), sep=", ", flush=True)
    result = {"command": f"python -m experiments.bench.scan --rounds {rounds}", "rows": rows}
    print("written:", write("scan", result))


if __name__ == "__main__":
    main()
