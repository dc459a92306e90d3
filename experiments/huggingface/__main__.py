"""Writes a directory of Hugging Face from a finished run, or from another one.

    python -m experiments.huggingface FROM TO [--form dense|pruned_heads|exact]

FROM is the workdir of a run of the model "bert", which is shrunk to what its masks keep, or a
directory of Hugging Face in any form, or "minilm". Forms: "dense" is for transformers 4 and 5,
"pruned_heads" for transformers up to 4.57, and "exact", which has no zeros in the place of what is
gone, for `experiments.huggingface.load` alone.
"""

import argparse
import pathlib
import sys

from experiments import huggingface
from experiments.data.download import DownloadError
from experiments.huggingface.configuration import FORMS, OURS, read_config
from experiments.huggingface.reading import WEIGHTS
from experiments.huggingface.sources import load_any


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.huggingface",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", metavar="FROM")
    parser.add_argument("directory", metavar="TO")
    parser.add_argument("--form", default="dense", choices=FORMS)
    options = parser.parse_args(arguments)
    try:
        model, source = load_any(options.source)
        huggingface.save(model, options.directory, source, options.form)
    except (ValueError, OSError, DownloadError) as error:
        sys.exit(f"error: {error}")
    ours = read_config(options.directory)[OURS]
    for layer, (heads, hidden) in enumerate(zip(ours["heads"], ours["hidden"], strict=True)):
        print(f"layer {layer}: {heads} heads, {hidden} neurons")
    size = (pathlib.Path(options.directory) / WEIGHTS).stat().st_size
    print(f"written: {options.directory}, {size / 2**20:.1f} MiB of weights, {ours['form']}")


if __name__ == "__main__":
    main(sys.argv[1:])
