"""Measures a claim about accuracy over seeds.

    python -m experiments.sweep --claim NAME [--seeds 5] [--workdir DIR] [--results DIR]

Every arm of a claim is a config with overrides, run once per seed in a folder of its
own under the workdir: a sweep that was killed goes on. The outcome is written to
``results/NAME.json`` and ``results/NAME.md``.
"""

import logging
import pathlib
import sys

import absl.logging
from absl import app, flags

from experiments import claims, workdir

_CLAIM = flags.DEFINE_string("claim", None, f"which one: {', '.join(claims.CLAIMS)}", required=True)
_SEEDS = flags.DEFINE_integer("seeds", 5, "how many seeds, from 0")
_WORKDIR = flags.DEFINE_string("workdir", "runs/sweep", "folder of the runs")
_RESULTS = flags.DEFINE_string("results", "experiments/results", "folder of the outcome")


def main(argv: list[str]) -> None:
    del argv
    absl.logging.set_verbosity(absl.logging.WARNING)
    logging.getLogger("experiments").setLevel(logging.WARNING)
    try:
        outcome = claims.measure(_CLAIM.value, range(_SEEDS.value), pathlib.Path(_WORKDIR.value))
    except ValueError as error:
        sys.exit(f"error: {error}")
    folder = pathlib.Path(_RESULTS.value)
    folder.mkdir(parents=True, exist_ok=True)
    workdir.write_json(folder / f"{_CLAIM.value}.json", outcome)
    (folder / f"{_CLAIM.value}.md").write_text(claims.as_markdown(outcome))
    print(claims.as_markdown(outcome))


if __name__ == "__main__":
    app.run(main)
