"""Trains and prunes a model as a config says.

    python -m experiments.run --config experiments/configs/NAME.py --workdir DIR \
        [--overwrite] [--config.key=value ...]

Keys are those of the file and the options of the factories that it names; README.md
beside this file lists configs. The same command started again goes on where a killed run stopped.
"""

import logging
import shlex
import sys

import absl.logging

from experiments import command_line, summary, train
from experiments.data.download import DownloadError


def main(arguments: list[str]) -> None:
    # The checkpoint library tells every step of every save at level INFO.
    absl.logging.set_verbosity(absl.logging.WARNING)
    logging.basicConfig(format="%(message)s")
    logging.getLogger("experiments").setLevel(logging.INFO)
    try:
        options = command_line.parse(arguments, __doc__ or "")
        report = train.run(options.config, options.workdir, overwrite=options.overwrite)
    except (ValueError, KeyError, OSError, DownloadError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        print(
            f"\nstopped; to go on from the last checkpoint:\n  {again(arguments)}", file=sys.stderr
        )
        sys.exit(130)
    heading = summary.as_paragraphs([f"{summary.title(report)}: {summary.lead(report)}"])
    notes = summary.as_paragraphs(summary.notes(report))
    print(f"\n{heading}\n\n{summary.as_text(summary.rows(report))}\n\n{notes}")
    print(f"\nDetails: {options.workdir}/report.html and report.json")


def again(arguments: list[str]) -> str:
    """The command that goes on with a run; it deletes nothing.

    >>> again(["--config=a.py", "--overwrite"]).removeprefix(sys.executable)
    ' -m experiments.run --config=a.py'
    """
    kept = [argument for argument in arguments if argument != "--overwrite"]
    return shlex.join([sys.executable, "-m", "experiments.run", *kept])


if __name__ == "__main__":
    main(sys.argv[1:])
