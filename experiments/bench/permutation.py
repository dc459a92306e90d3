"""What a permutation search costs and recovers: `python -m experiments.bench.permutation`.

Uniform [0, 1) weights, 2:4. First the 128 x 64 matrix on which the search was
published, by window and escapes; then square layers of rising width, by method.
The search is numpy on threads: nothing compiles, every call costs the same. A call
is timed whole, from the matrix to the permutation.
"""

import argparse
import statistics
from collections.abc import Callable
from typing import Any

import numpy as np

from experiments.measurements import write
from jaxsparse.graph import PermutationSearch, search_permutation
from jaxsparse.timing import interleave

SMALL = {
    "window 8, no escapes": {"escapes": 0},
    "window 8, 100 escapes": {},
    "window 12, no escapes": {"window": 12, "escapes": 0},
    "swap, 100 escapes": {"method": "swap"},
    "progressive": {"method": "progressive"},
}
WIDE = {
    "auto": {},
    "swap, no escapes": {"method": "swap", "escapes": 0},
}
# Seconds of NVIDIA's apex on the same matrix, by its paper's authors: CPU and GPU.
PUBLISHED = {"window 8, no escapes": (60.7, 0.013), "window 8, 100 escapes": (465.7, 0.152)}


def measure(
    matrix: np.ndarray, searches: dict[str, dict[str, Any]], rounds: int
) -> dict[str, dict[str, Any]]:
    """Returns median seconds and what was found, of every search."""
    found: dict[str, PermutationSearch] = {}

    def run(name: str) -> Callable[[], None]:
        def search() -> None:
            found[name] = search_permutation(matrix, **searches[name])

        return search

    seconds = interleave({name: run(name) for name in searches}, rounds)
    return {
        name: {
            "seconds": round(statistics.median(seconds[name]), 4),
            "method": found[name].method,
            "plain": found[name].plain,
            "retained": found[name].retained,
            "bound": found[name].bound,
            "efficacy": round(found[name].efficacy, 4),
        }
        for name in searches
    }


def main() -> None:
    """Measures, prints the tables, writes results/permutation.json."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5, help="of the small matrix")
    parser.add_argument("--widest", type=int, default=4096, help="columns of the last layer")
    options = parser.parse_args()
    small = measure(
        np.random.RandomState(1).rand(128, 64).astype(np.float32), SMALL, options.rounds
    )
    print(f"{'128 x 64':<24}{'seconds':>9}{'retained':>11}{'efficacy':>10}")
    for name, row in small.items():
        print(f"{name:<24}{row['seconds']:>9.3f}{row['retained']:>11.3f}{row['efficacy']:>10.1%}")
    curve = {}
    print(f"\n{'square layer':<14}{'search':<19}{'method':<13}{'seconds':>9}{'efficacy':>10}")
    columns = 256
    while columns <= options.widest:
        matrix = np.random.RandomState(columns).rand(columns, columns).astype(np.float32)
        searches = WIDE if columns <= 1024 else {"auto": {}}
        curve[columns] = measure(matrix, searches, 1)
        for name, row in curve[columns].items():
            print(
                f"{columns:<14}{name:<19}{row['method']:<13}{row['seconds']:>9.2f}"
                f"{row['efficacy']:>10.1%}",
                flush=True,
            )
        columns *= 2
    result = {
        "command": f"python -m experiments.bench.permutation --rounds {options.rounds} "
        f"--widest {options.widest}",
        "128 x 64": small,
        "published seconds (apex, CPU and GPU)": PUBLISHED,
        "square layers": curve,
    }
    print("written:", write("permutation", result))


if __name__ == "__main__":
    main()
