"""Trains and prunes a model as a config says.

    python -m experiments.run --config experiments/configs/NAME.py --workdir DIR \
        [--overwrite] [--config.key=value ...]

Keys are those of the file and the options of the factories that it names; README.md
beside this file lists configs. The same command started again goes on where a killed run stopped.
"""

import shlex
import sys

from experiments import command_line, summary, train


def main(arguments: list[str]) -> None:
    with command_line.reported(f"to go on from the last checkpoint:\n  {again(arguments)}"):
        options = command_line.parse(arguments, __doc__ or "")
        report = train.run(options.config, options.workdir, overwrite=options.overwrite)
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
