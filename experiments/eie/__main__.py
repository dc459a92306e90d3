"""EIE in numbers: load balance, padding and storage, published layers and trained ones.

    python -m experiments.eie --workdir runs/eie                   # about a minute
    python -m experiments.eie --workdir runs/eie --run runs/mine   # layers of a run of your own

The nine layers of the paper's Table III are drawn at random by their densities and simulated on
64 processing elements. Beside them stand layers that were trained: those of `--run`, the folder of
a finished `experiments.run` of an MLP, else of `digits_magnitude`, which is trained first. Their
weights are coded in four bits, their activations are those of held-out examples.

Writes report.json and report.html to the folder.
"""

import argparse
import pathlib
import sys

from experiments import outcome, summary, train, workdir
from experiments.configs import digits_magnitude
from experiments.eie import page, published, trained

DEPTHS = (1, 2, 4, 8, 16, 32, 64, 256)


def run(folder: pathlib.Path, of: pathlib.Path | None = None, pes: int = published.PES) -> dict:
    """Counts everything and writes the report.

    Args:
      folder: where; made if it is not there.
      of: folder of a finished run of an MLP; None trains `digits_magnitude` in `folder`.
      pes: processing elements.

    Returns:
      What report.json holds.

    Raises:
      ValueError: the run is not finished, or not one of an MLP on a single array.
    """
    if of is None:
        of = folder / "digits"
        train.run(digits_magnitude.get_config(), str(of), html=False)
    report = {
        "pes": pes,
        "depths": list(DEPTHS),
        "layers": [published.count(name, DEPTHS, pes) for name in published.LAYERS],
        "trained": trained.count(of, pes),
        "environment": outcome.environment(),
    }
    folder.mkdir(parents=True, exist_ok=True)
    workdir.write_text(folder / "report.html", page.build(report))
    workdir.write_json(folder / workdir.REPORT, report)
    return report


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.eie",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--workdir", type=pathlib.Path, required=True)
    parser.add_argument("--run", type=pathlib.Path, help="a finished run of an MLP")
    parser.add_argument("--pes", type=int, default=published.PES, help="processing elements")
    options = parser.parse_args(arguments)
    if options.pes < 1:
        parser.error(f"--pes {options.pes}: at least 1 element")
    try:
        report = run(options.workdir, options.run, options.pes)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    for rows in (page.layers(report), page.storage(report), page.trained(report)):
        print(summary.as_text(rows), end="\n\n")
    print(f"Details: {options.workdir}/report.html and report.json")


if __name__ == "__main__":
    main(sys.argv[1:])
