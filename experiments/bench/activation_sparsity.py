"""What a product of one row saves by skipping the zeros of x, on this machine, in one process.

    python -m experiments.bench.activation_sparsity            # about five minutes
    python -m experiments.bench.activation_sparsity --quick    # the layer 4096x4096 alone

A fully connected layer as in the EIE paper: a share of the weights at random places, a share of
the inputs not zero. Weights by input (`CSR`), whose kernel reads those of active inputs only,
against what `pack` takes unasked, `CSC` or `Bitmap`, which reads all, and against `jnp.dot`. A
turn is a few milliseconds of calls in a row; ratios are medians over rounds of the ratio within
a round. Losing cells are written like the winning ones, and the share of active inputs from
which on skipping loses, interpolated between cells.

Writes results/activation_sparsity.json, the table of it and a figure.
"""

import argparse
import itertools
import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

import jaxsparse as js
from experiments import measurements
from jaxsparse.timing import interleave, medians, ratios

# Inputs, outputs, share of weights, share of active inputs; the last three as in the EIE paper.
LAYERS = {
    "1024x4096": (1024, 4096, 0.09, 0.35),
    "4096x4096": (4096, 4096, 0.09, 0.35),
    "9216x4096": (9216, 4096, 0.09, 0.351),
    "25088x4096": (25088, 4096, 0.04, 0.183),
}
WIDE = {"4096x16384": (4096, 16384, 0.09, 0.35)}  # y outgrows the first cache
ACTIVE = (1.0, 0.9, 0.8, 0.7, 0.5, 0.2, 0.1)
DTYPES = ("float32", "bfloat16", "int8")
TURN, ROUNDS = 4e-3, 15
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def draw(shape: tuple[int, int], density: float) -> tuple[np.ndarray, np.ndarray]:
    """A weight and its mask, the same for every run."""
    rng = np.random.default_rng(0)
    mask = rng.random(shape, np.float32) < density
    return np.where(mask, rng.standard_normal(shape, np.float32), 0), mask


def activations(inputs: int, share: float, rows: int) -> jax.Array:
    """Rows of which exactly this share is not zero, each at places of its own."""
    rng = np.random.default_rng(1)
    x = np.zeros((rows, inputs), np.float32)
    for row in x:
        row[rng.permutation(inputs)[: round(share * inputs)]] = rng.uniform(0.1, 1)
    return jnp.asarray(x)


def rows_of(
    name: str,
    layer: tuple[int, int, float, float],
    dtypes: Sequence[str],
    batches: Sequence[int],
    clock: str,
) -> list[dict[str, Any]]:
    """All cells of a layer: its own share of active inputs first, then the curve."""
    inputs, outputs, density, own = layer
    dense, mask = draw((inputs, outputs), density)
    whole, plain = jnp.asarray(dense), jax.jit(jnp.dot)
    product = jax.jit(js.sparse_dot)
    found = []
    for dtype in dtypes:
        by_input = js.pack(dense, js.Unstructured(), mask, dtype=dtype, storage=js.CSR)
        usual = js.pack(dense, js.Unstructured(), mask, dtype=dtype)
        for batch in batches:
            for share in (own, *ACTIVE) if dtype == "float32" else (own,):
                x = activations(inputs, share, batch)
                runs = {
                    "CSR": lambda x=x, w=by_input: product(x, w),
                    "usual": lambda x=x, w=usual: product(x, w),
                    "jnp.dot": lambda x=x: plain(x, whole),
                }
                if not np.allclose(runs["CSR"](), runs["usual"](), rtol=1e-3, atol=1e-3):
                    raise AssertionError(f"{name}, {dtype}: the products differ")
                times = interleave(runs, ROUNDS, turn=TURN, clock=CLOCKS[clock])
                least = {run: min(seconds) for run, seconds in times.items()}
                found.append(
                    {
                        "layer": name,
                        "shape": [inputs, outputs],
                        "weights": density,
                        "active": share,
                        "dtype": dtype,
                        "batch": batch,
                        "usual": type(usual).__name__,
                        "ms": {run: 1e3 * value for run, value in medians(times).items()},
                        "least_ms": {run: 1e3 * value for run, value in least.items()},
                        "over_usual": 1 / ratios(times, "usual")["CSR"],
                        "over_dot": 1 / ratios(times, "jnp.dot")["CSR"],
                    }
                )
                print(line(found[-1]), flush=True)
    return found


def line(row: Mapping[str, Any]) -> str:
    """A row as it is printed."""
    return (
        "{layer:>11} {dtype:>8} batch {batch} weights {weights:.2f} active {active:.3f}: "
        "{ms[CSR]:7.3f} ms, {over_usual:5.2f}x {usual}, {over_dot:5.2f}x jnp.dot".format(**row)
    )


def break_even(rows: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    """By layer and batch the share of active inputs at which float32 CSR is as fast as the usual.

    Between two cells the ratio is taken for a straight line; None where it wins even where every
    input is active.
    """
    curves: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        if row["dtype"] == "float32":
            name = f"{row['layer']}, batch {row['batch']}"
            curves.setdefault(name, []).append((row["active"], row["over_usual"]))
    return {name: _crossing(sorted(points)) for name, points in curves.items()}


def _crossing(points: Sequence[tuple[float, float]]) -> float | None:
    for (a, over), (b, under) in itertools.pairwise(points):
        if over >= 1 > under:
            return round(a + (b - a) * (over - 1) / (over - under), 3)
    return None


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Every cell, those that lose in bold."""
    lines = [
        "| layer | weights | active | dtype | batch | CSR, ms | usual, ms | gain | over dense |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        over = f"{row['over_usual']:.2f}"
        over = over if row["over_usual"] >= 1 else f"**{over}**"
        lines.append(
            f"| {row['layer']} | {row['weights']:.0%} | {row['active']:.1%} | {row['dtype']} | "
            f"{row['batch']} | {row['ms']['CSR']:.3f} | {row['usual']} {row['ms']['usual']:.3f} | "
            f"{over} | {row['over_dot']:.1f} |"
        )
    return "\n".join(lines) + "\n"


def figure(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """How many times faster than the usual storage, against the share of active inputs."""
    picture = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = picture.add_subplot()
    curves: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        if (row["dtype"], row["batch"]) == ("float32", 1):
            name = f"{row['layer']}, {row['weights']:.0%} of weights"
            curves.setdefault(name, []).append((row["active"], row["over_usual"]))
    for name, points in curves.items():
        axes.plot(*zip(*sorted(points), strict=True), marker="o", markersize=3, label=name)
    axes.axhline(1, color="black", linewidth=0.8)
    axes.set(yscale="log", xlabel="inputs that are not zero", ylabel="usual storage's time / CSR's")
    axes.set_yticks([0.5, 1, 2, 4, 8], ["0.5", "1", "2", "4", "8"])
    axes.set_yticks([], minor=True)
    axes.legend(fontsize=7)
    return picture


def write(result: Mapping[str, Any]) -> pathlib.Path:
    """Writes the results, their table and figure."""
    path = measurements.write("activation_sparsity", result)
    path.with_suffix(".md").write_text(table(result["rows"]))
    figure(result["rows"]).savefig(path.with_suffix(".png"), dpi=110)
    return path


def main() -> None:
    """Measures the grid, prints every row and writes the results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="one layer in float32; writes nothing")
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu: of this process")
    options = parser.parse_args()
    if options.quick:
        name = "4096x4096"
        print(break_even(rows_of(name, LAYERS[name], DTYPES[:1], [1], options.clock)))
        return
    rows = []
    for name, layer in (LAYERS | WIDE).items():
        batches = [1, 2, 4] if name == "4096x4096" else [1]
        dtypes = DTYPES if name in LAYERS else DTYPES[:1]
        rows += rows_of(name, layer, dtypes, batches, options.clock)
    result = {
        "command": f"python -m experiments.bench.activation_sparsity --clock {options.clock}",
        "implementations": js.implementations(),
        "clock": options.clock,
        "break_even": break_even(rows),
        "rows": rows,
    }
    print("written:", write(result), result["break_even"])


if __name__ == "__main__":
    main()
