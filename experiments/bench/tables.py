"""The rows of `sparse_dot.json` as the table that the README shows.

python -m experiments.bench.tables            # prints results/sparse_dot.md anew
"""

import collections
import json
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.bench import timing

Rows = Sequence[Mapping[str, Any]]


def least(rows: Rows, ratio: str) -> dict[tuple, dict[float, float]]:
    """The ratio of the worst shape: (storage, dtype, batch) -> density -> ratio."""
    found: dict[tuple, dict[float, float]] = collections.defaultdict(dict)
    for row in rows:
        densities = found[row["storage"], row["dtype"], row["batch"]]
        density = row["density"]
        densities[density] = min(row[ratio], densities.get(density, row[ratio]))
    return found


def markdown(rows: Rows, implementation: str = "cpu") -> str:
    """A table of speed-ups, the least of the shapes; those below 1 are bold.

    Every cell lists the densities from high to low, first against `jnp.dot`, then
    against the best dense product there is.
    """
    rows = [
        r for r in rows if r["implementation"] == implementation and r["direction"] == "forward"
    ]
    batches = sorted({row["batch"] for row in rows}, reverse=True)
    plain, best = least(rows, "speedup"), least(rows, "speedup_over_best")
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


def _ratio(value: float) -> str:
    text = f"{value:.1f}"
    return text if value >= 1 else f"**{value:.2f}**"


def main() -> None:
    """Writes results/sparse_dot.md and prints it."""
    path = timing.RESULTS / "sparse_dot.json"
    table = markdown(json.loads(path.read_text())["rows"])
    path.with_suffix(".md").write_text(table)
    print(table)


if __name__ == "__main__":
    main()
