"""DLRM at MLPerf's sizes in INT8: `python -m experiments.bench.int8`.

Random weights, for speed alone (`sweep --claim int8` has accuracy): 26 tables of few rows and
width 128, towers 13-512-256-128 and 479-1024-1024-512-256-1, of which 1024x1024 and 1024x512,
66.5 % of the multiplications, keep 15 % in 4x16 blocks. Four models take turns in one process:
float32 and INT8, dense and sparse; quantization is included, and layers hand each other codes.
INT8 dense is ours at density 1. Of the two layers alone, codes in and out, ONNX Runtime's products
are beside them where it is installed, and how wrong they are where their sums saturate.
Offline is batch 2,048, online 1 to 64. Writes results/int8.json and int8.md.
"""

import argparse
import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import jaxsparse as js
from experiments import int8
from experiments.bench import int8_peers
from experiments.measurements import RESULTS, machine, write
from experiments.models.dlrm import DLRM
from experiments.models.mlp import MLP
from jaxsparse.timing import interleave, medians, ratios

BLOCK, SPARSITY = js.Block(4, 16, pad=True), 0.85
EVERY = (js.Rule(r"(bottom|top)/layers_\d+/kernel", BLOCK),)
SPARSE = (js.Rule(r"top/layers_[12]/kernel", BLOCK, sparsity=SPARSITY),)
F32, F32_SPARSE, INT8, INT8_SPARSE = MODELS = ("f32 dense", "f32 4x16", "INT8 dense", "INT8 4x16")
BATCHES, THREADS, ROUNDS = (1, 4, 16, 64, 2048), 2, 50
PERCENTILES = (50, 90, 99)
# As published with the sparse model, queries a second on one server of Intel's.
PUBLISHED = """
|   | Dense Model (FP32) | Dense Model (INT8) | Sparse Model (INT8) |
|---|:---:|:---:|:---:|
| Accuracy | 80.25% (100%) | 80.21% (99.96%) | 79.91% (99.57%) |
| Offline QPS | 5732 | 23174 (1.0x) | 36883 (1.6x) |
| Online QPS | NA | 20245 (1.0x) | 30396 (1.5x) |
"""
Run = Callable[[], Any]


@dataclasses.dataclass(frozen=True)
class Sizes:
    """What is measured.

    Attributes:
      tables, rows: of embeddings; rows are few, so that memory holds them.
      dense: features.
      width: of every vector.
      bottom, top: hidden widths of the towers; top's first three make the sparse layers.
    """

    tables: int = 26
    rows: int = 1000
    dense: int = 13
    width: int = 128
    bottom: tuple[int, ...] = (512, 256)
    top: tuple[int, ...] = (1024, 1024, 512, 256)

    @property
    def joined(self) -> int:
        """Inputs of the top tower."""
        vectors = self.tables + 1
        return self.width + vectors * (vectors - 1) // 2


class Towers(nnx.Module):
    """The two towers of DLRM without embeddings and what joins them: all of its linear layers."""

    def __init__(self, sizes: Sizes, *, rngs: nnx.Rngs):
        self.bottom = MLP((sizes.dense, *sizes.bottom, sizes.width), rngs=rngs)
        self.top = MLP((sizes.joined, *sizes.top, 1), rngs=rngs)

    def __call__(self, inputs):
        return self.bottom(inputs["dense"]), self.top(inputs["joined"])


def built(part: str, sizes: Sizes) -> nnx.Module:
    """The whole "model", or its "towers", with random weights."""
    rngs = nnx.Rngs(0)
    if part == "towers":
        return Towers(sizes, rngs=rngs)
    ids = [sizes.rows] * sizes.tables
    shape = ids, 0, sizes.dense, sizes.width, sizes.bottom, sizes.top
    return DLRM(*shape, 0.0, rngs=rngs)


def inputs(sizes: Sizes, batch: int, seed: int = 0) -> dict[str, jax.Array]:
    """Drawn inputs of the model and of its towers."""
    rng = np.random.default_rng(seed)
    drawn = {
        "ids": rng.integers(0, sizes.rows, (batch, sizes.tables)).astype(np.int32),
        "dense": rng.normal(size=(batch, sizes.dense)).astype(np.float32),
        "joined": rng.normal(size=(batch, sizes.joined)).astype(np.float32),
    }
    return jax.tree.map(jnp.asarray, drawn)


def models(part: str, sizes: Sizes, calibration: int = 256) -> dict[str, Callable[..., Any]]:
    """By name what runs a part, called with its inputs; each is jitted and has its weights."""
    graph, params = nnx.split(built(part, sizes))

    def forward(params, x):
        return nnx.merge(graph, params)(x)

    masks = js.compute_masks(params, SPARSE)
    masked = js.mask_params(params, masks)
    batches = [(inputs(sizes, calibration, seed=1),)]
    dense, sparse = (int8.quantize(forward, p, batches, EVERY) for p in (params, masked))
    made = {
        F32: (forward, params),
        F32_SPARSE: (js.sparsify(forward), js.pack_params(params, masks, SPARSE)),
        INT8: (dense.forward, dense.params),
        INT8_SPARSE: (sparse.forward, sparse.params),
    }
    return {name: _bound(*one) for name, one in made.items()}


def _bound(forward, params):
    run = jax.jit(forward)
    return lambda x: lambda: run(params, x)


def layers(shape: tuple[int, int]) -> tuple[dict[str, Any], dict[str, float]]:
    """By name what runs one layer with a ReLU, and how much of a sum the peers lose.

    f32 ones on floats; INT8 ones of codes to codes; peers of codes to int32 sums.
    """
    rng = np.random.default_rng(0)
    weight = rng.normal(size=shape).astype(np.float32) / np.sqrt(shape[0])
    rule = [js.Rule("w", BLOCK, sparsity=SPARSITY)]
    mask = js.compute_masks({"w": jnp.asarray(weight)}, rule)["w"]
    codes, out = js.quantized.of_range(0.0, 4.0), js.quantized.of_range(0.0, 8.0)

    def dense(w, x):
        return jax.nn.relu(x @ w)

    def product(w, x):
        return js.quantized.linear(x, w, codes, activation="relu", out=out)

    packed = {
        name: js.pack(weight, BLOCK, kept, dtype=jnp.int8)
        for name, kept in ((INT8, np.ones(shape, bool)), (INT8_SPARSE, mask))
    }
    runs: dict[str, Any] = {
        F32: _bound(dense, jnp.asarray(weight)),
        F32_SPARSE: _bound(js.sparsify(dense), js.pack(weight, BLOCK, mask)),
        **{name: _bound(product, w) for name, w in packed.items()},
    }
    peers = int8_peers.installed(THREADS)
    whole = np.asarray(packed[INT8].replace(scales=None).todense())
    runs |= {name: peer(whole) for name, peer in peers.items()}
    lost = int8_peers.shortfalls(peers) | dict.fromkeys((INT8, INT8_SPARSE), 0.0)

    def bind(name, run):
        def started(batch):
            x = np.abs(rng.normal(size=(batch, shape[0]))).astype(np.float32)
            steps = np.asarray(codes.quantize(jnp.asarray(x)))
            return run(
                x if name in (F32, F32_SPARSE) else steps if name in peers else jnp.asarray(steps)
            )

        return started

    return {name: bind(name, run) for name, run in runs.items()}, lost


def timed(part: str, batch: int, runs: Mapping[str, Run], rounds: int) -> list[dict[str, Any]]:
    """A row for every model: its times, and how many times faster it is than INT8 dense."""
    times = interleave(runs, rounds)
    middle, relative = medians(times), ratios(times, INT8)
    return [
        {
            "part": part,
            "batch": batch,
            "model": name,
            "qps": round(batch / middle[name]),
            **{
                f"p{p}_ms": round(1e3 * float(np.percentile(times[name], p)), 4)
                for p in PERCENTILES
            },
            "speedup": round(1 / relative[name], 3),
        }
        for name in runs
    ]


def measure(sizes: Sizes, batches: Sequence[int], rounds: int) -> dict[str, Any]:
    """``rows`` of all parts, batches and models, and ``lost``, the shortfalls by model."""
    rows: list[dict[str, Any]] = []
    lost: dict[str, float] = {}
    for part in ("model", "towers"):
        made = models(part, sizes)
        for batch in batches:
            x = inputs(sizes, batch)
            rows += timed(part, batch, {name: run(x) for name, run in made.items()}, rounds)
    for shape in zip(sizes.top, sizes.top[1:3], strict=False):
        made, lost = layers(shape)
        name = "x".join(map(str, shape))
        for batch in batches:
            rows += timed(name, batch, {n: run(batch) for n, run in made.items()}, rounds)
    return {"rows": rows, "lost": lost}


def markdown(found: Mapping[str, Any]) -> str:
    """A table a part: queries a second, percentiles, and times faster than INT8 dense."""
    rows, lost = found["rows"], found["lost"]
    text = []
    for part in dict.fromkeys(row["part"] for row in rows):
        here = [row for row in rows if row["part"] == part]
        batches = list(dict.fromkeys(row["batch"] for row in here))
        lines = [[part, *(f"batch {batch}" for batch in batches), "lost of a sum at worst"]]
        lines.append(["---"] * len(lines[0]))
        for name in dict.fromkeys(row["model"] for row in here):
            cells = [_cell(row) for row in here if row["model"] == name]
            short = "-" if name not in lost else f"{lost[name]:.1%}" if lost[name] else "exact"
            lines.append([name, *cells, short])
        text.append("".join(f"| {' | '.join(line)} |\n" for line in lines))
    head = (
        "Milliseconds at the 50th / 90th / 99th percentile, queries a second, and times faster "
        "than INT8 dense of ours; below 1 in bold.\n\n"
    )
    published = "As published for DLRM, INT8 on VNNI, the whole model on one server:\n"
    return head + "\n".join(text) + "\n" + published + PUBLISHED


def _cell(row: Mapping[str, Any]) -> str:
    times = " / ".join(f"{row[f'p{p}_ms']:.3g}" for p in PERCENTILES)
    speedup = f"{row['speedup']:.2f}"
    return f"{times}, {row['qps']:,}/s, {speedup if row['speedup'] >= 1 else f'**{speedup}**'}"


def main() -> None:
    """Measures, prints the tables, writes results/int8.json and int8.md."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--batches", type=int, nargs="+", default=BATCHES)
    options = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):  # JAX takes the threads that there are
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:THREADS])
    sizes = Sizes()
    found = measure(sizes, options.batches, options.rounds)
    print(table := markdown(found))
    batches = " ".join(map(str, options.batches))
    command = f"python -m experiments.bench.int8 --rounds {options.rounds} --batches {batches}"
    head = {"command": command, "threads": THREADS, "sizes": dataclasses.asdict(sizes)}
    (RESULTS / "int8.md").write_text(f"{table}\n`{command}`; {machine()}\n")
    print("written:", write("int8", head | found))


if __name__ == "__main__":
    main()
