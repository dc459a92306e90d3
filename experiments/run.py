"""Trains and prunes a model as a config says.

    python -m experiments.run --config experiments/configs/NAME.py --workdir DIR \
        [--overwrite] [--config.key=value ...]

The same command started again goes on where a killed run stopped.
"""

import logging
import sys

import absl.logging
from absl import app, flags
from ml_collections import config_flags

from experiments import config as configs
from experiments import summary, train
from experiments.data.download import DownloadError

_CONFIG = config_flags.DEFINE_config_file("config", help_string="the config's Python file")
_WORKDIR = flags.DEFINE_string("workdir", None, "folder of the run", required=True)
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "delete the run in the folder first")


def parse_flags(argv: list[str]) -> list[str]:
    """absl's parser, after the config's file and keys are known to exist.

    ml_collections reports an unknown key with a traceback and without its prefix.
    """
    try:
        path = next((value for key, value in _pairs(argv) if key == "config"), "")
        if path:
            config = configs.load(path)
            for key, _ in _pairs(argv):
                if key.startswith("config."):
                    configs.check_key(config, key.removeprefix("config."))
    except ValueError as error:
        sys.exit(f"error: {error}")
    return app.parse_flags_with_usage(argv)


def _pairs(argv: list[str]):
    """(flag, value) of every ``--flag=value`` or ``--flag value`` before a bare ``--``."""
    for argument, following in zip(argv, [*argv[1:], ""], strict=True):
        if argument == "--":
            return
        if argument.startswith("-"):
            key, equals, value = argument.lstrip("-").partition("=")
            yield key, value if equals else following


def main(argv: list[str]) -> None:
    # The checkpoint library tells every step of every save at level INFO.
    absl.logging.set_verbosity(absl.logging.WARNING)
    logging.getLogger("experiments").setLevel(logging.INFO)
    if len(argv) > 1:
        sys.exit(f"error: unexpected arguments {argv[1:]}")
    if _CONFIG.value is None:
        sys.exit("error: --config is missing")
    try:
        report = train.run(_CONFIG.value, _WORKDIR.value, overwrite=_OVERWRITE.value)
    except (ValueError, KeyError, DownloadError) as error:
        sys.exit(f"error: {error}")
    heading = summary.as_paragraphs([f"{summary.title(report)}: {summary.lead(report)}"])
    notes = summary.as_paragraphs(summary.notes(report))
    print(f"\n{heading}\n\n{summary.as_text(summary.rows(report))}\n\n{notes}")
    print(f"\nDetails: {_WORKDIR.value}/report.html and report.json")


if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags)
