"""The rows of `sparse_dot.json` as the table that docs/numbers.md shows.

python -m experiments.bench.tables            # prints results/sparse_dot.md anew
"""

import collections
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from experiments import measurements
from experiments.bench import gates

Rows = Sequence[Mapping[str, Any]]


def least(rows: Rows, ratio: str) -> dict[tuple, dict[float, float]]:
    """The ratio of the worst shape: (storage, dtype, batch) -> density -> ratio."""
    found: dict[tuple, dict[float, float]] = collections.defaultdict(dict)
    for row in rows:
        densities = found[row["storage"], row["dtype"], row["batch"]]
        density = row["density"]
        densities[density] = min(row[ratio], densities.get(density, row[ratio]))
    return found


def forward(rows: Rows, implementation: str) -> Rows:
    """The rows of one implementation's products x @ W."""
    return [
        r for r in rows if r["implementation"] == implementation and r["direction"] == "forward"
    ]


def markdown(rows: Rows, implementation: str = "cpu", suffix: str = "") -> str:
    """A table of speed-ups, the least of the shapes; those below 1 are bold.

    Every cell lists the densities from high to low, first against `jnp.dot`, then
    against the best dense product there is. With the suffix "_in_turn" those of
    single calls, else those of calls in a row.
    """
    rows = forward(rows, implementation)
    batches = sorted({row["batch"] for row in rows}, reverse=True)
    plain, best = (least(rows, name + suffix) for name in ("speedup", "speedup_over_best"))
    head = ["storage, densities", *(f"batch {batch}" for batch in batches)]
    lines = [head, ["---"] * len(head)]
    for storage, dtype in dict.fromkeys((row["storage"], row["dtype"]) for row in rows):
        densities = sorted(plain[storage, dtype, batches[0]], reverse=True)
        name = f"{storage} {dtype}, {' / '.join(f'{d:g}' for d in densities)}"
        cells = [
            "; ".join(
                " / ".join(_ratio(table[storage, dtype, batch][d]) for d in densities)
                for table in (plain, best)
            )
            for batch in batches
        ]
        lines.append([name, *cells])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def both(rows: Rows, peak: float) -> str:
    """The two tables, and how the first stands to the targets; `peak` in GFLOP/s."""
    verdicts = gates.cpu_verdicts([r for r in rows if r["implementation"] == "cpu"], peak)
    return (
        f"Calls in a row:\n\n{markdown(rows)}\n"
        f"Single calls in turn, the caches full of the others' weights:\n\n"
        f"{markdown(rows, suffix='_in_turn')}\n"
        "Calls in a row against the targets, ratios to `jnp.dot` and shares of the peak on what "
        f"is kept ({peak:.0f} GFLOP/s here):\n\n{verdicts}"
    )


def side_by_side(rows: Rows) -> str:
    """A table of milliseconds, a column for every implementation and library, forward only."""
    rows = [row for row in rows if row["direction"] == "forward"]
    names = list(dict.fromkeys(row["implementation"] for row in rows))
    cells: dict[tuple, dict[str, float]] = collections.defaultdict(dict)
    for row in rows:
        key = row["storage"], row["dtype"], tuple(row["shape"]), row["batch"], row["density"]
        cells[key] |= {"jnp.dot": row["dense_ms"], row["implementation"]: row["ms"]}
    head = ["storage", "dtype", "shape", "batch", "density", "jnp.dot", *names]
    lines = [head, ["---"] * len(head)]
    for (storage, dtype, shape, batch, density), found in cells.items():
        times = (found.get(name) for name in ("jnp.dot", *names))
        size = "x".join(map(str, shape))
        lines.append(
            [storage, dtype, size, str(batch), f"{density:g}"]
            + ["" if time is None else f"{time:.2f}" for time in times]
        )
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def _ratio(value: float) -> str:
    text = f"{value:.1f}"
    return text if value >= 1 else f"**{value:.2f}**"


def figure(rows: Rows, path: pathlib.Path) -> None:
    """Speed-up over density in float32, a panel a batch size, the least of the shapes."""
    from matplotlib.figure import Figure

    rows = [r for r in rows if r["dtype"] == "float32" and r["direction"] == "forward"]
    batches = sorted({row["batch"] for row in rows})
    storages = list(dict.fromkeys(row["storage"] for row in rows))
    picture = Figure(figsize=(3 * len(batches) + 1.6, 3.4), layout="constrained")
    panels = picture.subplots(1, len(batches), sharey=True, squeeze=False)[0]
    for panel, batch in zip(panels, batches, strict=True):
        for implementation, style in (("cpu", "-"), ("xla", ":")):
            chosen = [
                r for r in rows if (r["batch"], r["implementation"]) == (batch, implementation)
            ]
            for (storage, *_), curve in least(chosen, "speedup").items():
                points = zip(*sorted(curve.items()), strict=True)
                options = {"color": f"C{storages.index(storage)}", "marker": "o", "markersize": 3}
                label = f"{storage}, {implementation}"
                panel.plot(*points, linestyle=style, label=label, **options)
        panel.axhline(1, color="black", linewidth=0.8)
        panel.set(xscale="log", yscale="log", title=f"batch {batch}", xlabel="density")
        ticks = sorted({row["density"] for row in rows})
        panel.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        panel.set_xticks([], minor=True)
    panels[0].set_ylabel("jnp.dot's time / ours")
    place: Any = "outside right"  # matplotlib's type stubs do not know it
    picture.legend(*panels[0].get_legend_handles_labels(), loc=place, fontsize=7)
    picture.savefig(path, dpi=110)


def write(rows: Rows, peak: float, path: pathlib.Path, others: bool = False) -> None:
    """Writes the table beside a file of results: with others', or of ratios and a figure."""
    path.with_suffix(".md").write_text(side_by_side(rows) if others else both(rows, peak))
    if not others:
        figure(rows, path.with_suffix(".png"))


def main() -> None:
    """Makes results/sparse_dot.md and .png and prints the table."""
    path = measurements.RESULTS / "sparse_dot.json"
    found = json.loads(path.read_text())
    write(found["rows"], found["limits"]["gflops"], path)
    print(markdown(found["rows"]))


if __name__ == "__main__":
    main()
