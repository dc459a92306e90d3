"""Measures a claim about accuracy over seeds.

    python -m experiments.sweep --claim NAME [--seeds 5] [--workdir DIR] [--results DIR]

The claim "movement" takes hours: some twenty runs of a pretrained transformer, or those of
the arms that ``--arms`` names. So does "oneshot": about an hour a seed on two idle cores, by
estimate (``oneshot_claim.ARMS`` has the minutes of each); "search" says its hours first. "int8"
trains DLRM on MovieLens twice a seed, a minute or two each.

Every arm of a claim is a config with overrides, run once per seed in a folder of its
own under the workdir: a sweep that was killed goes on. The outcome is written to
``results/NAME.json`` and ``results/NAME.md``.
"""

import argparse
import logging
import pathlib
import sys

import absl.logging

from experiments import claims, workdir
from experiments.data.download import DownloadError

MOVEMENT, ONESHOT, SEARCH, INT8 = "movement", "oneshot", "search", "int8"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m experiments.sweep")
    parser.add_argument(
        "--claim", required=True, choices=[*claims.CLAIMS, MOVEMENT, ONESHOT, SEARCH, INT8]
    )
    parser.add_argument("--seeds", type=int, default=5, help="how many seeds, from 0")
    parser.add_argument(
        "--arms",
        nargs="+",
        metavar="ARM",
        help=f"some of those that have arms by name: {MOVEMENT}, {ONESHOT}, {SEARCH}",
    )
    parser.add_argument("--workdir", default="runs/sweep", help="folder of the runs")
    parser.add_argument("--results", default="experiments/results", help="folder of the outcome")
    options = parser.parse_args()
    if options.seeds < 1:
        sys.exit(f"error: --seeds {options.seeds} must be at least 1")
    absl.logging.set_verbosity(absl.logging.WARNING)
    logging.getLogger("experiments").setLevel(logging.WARNING)
    seeds, runs = range(options.seeds), pathlib.Path(options.workdir)
    some = {"arms": options.arms} if options.arms else {}
    try:
        if options.claim == MOVEMENT:
            from experiments import movement_claim  # late: `make demo` installs no tokenizers

            outcome = movement_claim.measure(seeds, runs / MOVEMENT, **some)
            text = movement_claim.as_markdown(outcome)
        elif options.claim == ONESHOT:
            from experiments import oneshot_claim  # late, for the same reason

            outcome = oneshot_claim.measure(seeds, runs / ONESHOT, **some)
            text = oneshot_claim.as_markdown(outcome)
        elif options.claim == SEARCH:
            from experiments import search_claim

            hours = search_claim.estimate(options.seeds, **some)
            print(f"about {hours:.1f} hours on two idle cores, less what is finished", flush=True)
            outcome = search_claim.measure(seeds, runs / SEARCH, **some)
            text = search_claim.as_markdown(outcome)
        elif options.claim == INT8:
            from experiments import int8_claim

            outcome = int8_claim.measure(seeds, runs / INT8)
            text = int8_claim.as_markdown(outcome)
        else:
            outcome = claims.measure(options.claim, seeds, runs)
            text = claims.as_markdown(outcome)
    except (ValueError, OSError, DownloadError) as error:
        sys.exit(f"error: {error}")
    folder = pathlib.Path(options.results)
    folder.mkdir(parents=True, exist_ok=True)
    workdir.write_json(folder / f"{options.claim}.json", outcome)
    workdir.write_text(folder / f"{options.claim}.md", text)
    print(text)


if __name__ == "__main__":
    main()
