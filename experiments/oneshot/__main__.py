"""Prunes a language model without training, and says what it costs and gains.

    python -m experiments.oneshot --config experiments/configs/smollm_wanda.py --workdir DIR \
        [--overwrite] [--config.key=value ...]

Behind a colon a config takes a pattern: `smollm_alps.py:2:4`, or `:4:8`, `:4x16`. The same
command started again goes on where a killed run stopped.
"""

import sys

from experiments import command_line
from experiments import summary as texts
from experiments.oneshot import config, summary
from experiments.oneshot.run import run


def main(arguments: list[str]) -> None:
    with command_line.reported("the same command without --overwrite goes on"):
        options = command_line.parse(
            arguments, __doc__ or "", program="experiments.oneshot", check=config.check
        )
        report = run(options.config, options.workdir, overwrite=options.overwrite)
    heading = texts.as_paragraphs([f"{summary.title(report)}: {summary.lead(report)}"])
    print(f"\n{heading}\n\n{texts.as_text(summary.stages(report))}")
    if report["speed"]:
        print(f"\n{texts.as_text(summary.speeds(report))}")
    print(f"\nDetails: {options.workdir}/report.html and report.json")


if __name__ == "__main__":
    main(sys.argv[1:])
