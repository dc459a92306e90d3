"""Searches how many channels each layer keeps under a budget, and says what that costs and gains.

    python -m experiments.search --config experiments/configs/mnist_uniform.py --workdir DIR \
        [--overwrite] [--config.key=value ...]

Behind a colon a config takes a budget, a share of the FLOPs: `mnist_uniform.py:0.3`; `:digits` is
a small model on small images that shows the path in seconds. The same command started again goes
on where a killed run stopped.
"""

import sys

from experiments import command_line
from experiments import summary as texts
from experiments.search import config, summary
from experiments.search.run import run


def main(arguments: list[str]) -> None:
    with command_line.reported("the same command without --overwrite goes on"):
        options = command_line.parse(
            arguments, __doc__ or "", program="experiments.search", check=config.check
        )
        report = run(options.config, options.workdir, overwrite=options.overwrite)
    heading = texts.as_paragraphs([f"{summary.title(report)}: {summary.lead(report)}"])
    print(f"\n{heading}\n")
    for table in (summary.stages(report), summary.speeds(report), summary.groups(report)):
        print(texts.as_text(table), end="\n\n")
    print(f"Details: {options.workdir}/report.html and report.json")


if __name__ == "__main__":
    main(sys.argv[1:])
