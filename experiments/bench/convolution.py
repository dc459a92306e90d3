"""Packed convolutions beside dense ones: `python -m experiments.bench.convolution`.

A 3x3 convolution of 64 channels over 28x28 pixels, and every convolution of a ResNet-50 at 224x224
times as often as the network has it, packed and by `lax.conv_general_dilated` of the same masked
weight, in turn in one process. Written are the least processor time of each, and the median over
the rounds of dense over packed: above 1 packed is faster.
"""

import argparse
import time
from typing import Any

import jax
from jax import lax

import jaxsparse as js
from experiments.measurements import RESULTS, machine, write
from jaxsparse.kernels import cpu
from jaxsparse.timing import interleave, ratios

CELLS = {
    "2:4": (js.NM(2, 4), None),
    "4x16 at .5": (js.Block(4, 16), 0.5),
    "4x16 at .1": (js.Block(4, 16), 0.9),
    "unstructured at .5": (js.Unstructured(), 0.5),
    "unstructured at .1": (js.Unstructured(), 0.9),
}
BLOCKS = (js.Block(4, 16), 0.85)


def resnet50() -> dict[tuple[int, int, int, int, int], int]:
    """How often the network has a convolution of (size, inputs, outputs, window, stride).

    The first one, over three channels, stays dense and is left out.
    """
    found: dict[tuple[int, int, int, int, int], int] = {}

    def count(*shape):
        found[shape] = found.get(shape, 0) + 1

    size, inputs = 56, 64
    for stage, (blocks, width) in enumerate(zip((3, 4, 6, 3), (64, 128, 256, 512), strict=True)):
        for block in range(blocks):
            stride = 2 if stage and not block else 1
            count(size, inputs, width, 1, 1)
            count(size, width, width, 3, stride)
            if not block:
                count(size, inputs, 4 * width, 1, stride)
            size //= stride
            count(size, width, 4 * width, 1, 1)
            inputs = 4 * width
    return found


def cell(pattern, sparsity, batch, shape, rounds) -> dict[str, Any]:
    """Milliseconds of processor time, dense and packed, and the median ratio."""
    size, inputs, outputs, window, stride = shape
    key_x, key_w = jax.random.split(jax.random.key(0))
    x = jax.random.normal(key_x, (batch, size, size, inputs))
    params = {"kernel": jax.random.normal(key_w, (window, window, inputs, outputs))}
    rules = [js.Rule("kernel", pattern, sparsity, in_axis=-2)]
    masks = js.compute_masks(params, rules)

    def convolve(params, x):
        numbers = "NHWC", "HWIO", "NHWC"
        strides = (stride, stride)
        return lax.conv_general_dilated(
            x, params["kernel"], strides, "SAME", dimension_numbers=numbers
        )

    dense, packed = jax.jit(convolve), jax.jit(js.sparsify(convolve))
    masked, stored = js.mask_params(params, masks), js.pack_params(params, masks, rules)
    runs = {"dense": lambda: dense(masked, x), "packed": lambda: packed(stored, x)}
    times = interleave(runs, rounds, turn=0.01, clock=time.process_time)
    least = {name: 1e3 * min(found) for name, found in times.items()}
    return least | {"faster": 1 / ratios(times, "dense")["packed"]}


def cells(batches, rounds) -> list[dict[str, Any]]:
    """A row for every storage and batch."""
    return [
        {"weights": name, "batch": batch}
        | cell(pattern, sparsity, batch, (28, 64, 64, 3, 1), rounds)
        for batch in batches
        for name, (pattern, sparsity) in CELLS.items()
    ]


def network(batch, rounds) -> list[dict[str, Any]]:
    """A row for every shape of the network's convolutions, and one for their sum."""
    rows = [
        {"convolution": list(shape), "times": times, "batch": batch}
        | cell(*BLOCKS, batch, shape, rounds)
        for shape, times in resnet50().items()
    ]
    total = {name: sum(row[name] * row["times"] for row in rows) for name in ("dense", "packed")}
    together = {"convolution": "all", "times": 1, "batch": batch}
    return [*rows, together | total | {"faster": total["dense"] / total["packed"]}]


def markdown(result: dict[str, Any]) -> str:
    """Both tables; a convolution is its size, inputs, outputs, window and stride."""
    lines = []
    for title, key in (("3x3, 64 channels, 28x28", "cells"), ("ResNet-50 at 85 %", "resnet50")):
        if not result[key]:
            continue
        lines += [f"## {title}", "", "| what | batch | dense, ms | packed, ms | faster |"]
        lines += ["|---|---|---|---|---|"]
        for row in result[key]:
            what = row.get("weights") or f"{row['convolution']} x {row['times']}"
            figures = f"{row['dense']:.2f} | {row['packed']:.2f} | {row['faster']:.2f}"
            lines.append(f"| {what} | {row['batch']} | {figures} |")
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    """Measures, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--batches", type=int, nargs="*", default=[8, 64])
    parser.add_argument("--network", type=int, nargs="*", default=[1, 8])
    parser.add_argument("--name", default="convolution")
    options = parser.parse_args()
    lists = {"batches": options.batches, "network": options.network}
    asked = [f"--rounds {options.rounds}"]
    asked += [f"--{name} {' '.join(map(str, given))}".rstrip() for name, given in lists.items()]
    result = {
        "command": f"python -m experiments.bench.convolution {' '.join(asked)}",
        "instruction_set": cpu.instruction_set(),
        "cells": cells(options.batches, options.rounds),
        "resnet50": [row for b in options.network for row in network(b, options.rounds)],
    }
    write(options.name, result)
    text = markdown(result)
    (RESULTS / f"{options.name}.md").write_text(f"{text}\n`{result['command']}`; {machine()}\n")
    print(text)


if __name__ == "__main__":
    main()
