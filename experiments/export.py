"""Writes a trained model as a file that others run: ONNX, or StableHLO.

    python -m experiments.export FROM --to onnx --out model.onnx [--tokens 64] [--batch N]

FROM is the workdir of a run of the model "bert", which is shrunk to what its masks keep, a
directory of Hugging Face, or "minilm". Without --batch the file takes any number of examples.
`python -m experiments.huggingface FROM TO` writes a directory of Hugging Face. ONNX takes the
extra jaxsparse[onnx].
"""

import argparse
import pathlib
import sys
from typing import Any

import jax.numpy as jnp
import numpy as np

import jaxsparse as js
from experiments.data.download import DownloadError
from experiments.huggingface.reading import Encoder
from experiments.huggingface.sources import load_any
from experiments.models.encoders import Classifier, ImageEncoder
from experiments.models.llama import Llama

FORMATS = {"onnx": js.export_onnx, "stablehlo": js.export_stablehlo}


def example(
    model: Encoder | Classifier | Llama, batch: int, tokens: int, seed: int = 0
) -> tuple[Any, ...]:
    """Inputs of a model: images, or ids and masks of texts of different lengths.

    Args:
      model: called with them.
      batch: how many.
      tokens: in the longest text; of images they play no part.
      seed: of what they hold.

    Raises:
      ValueError: more tokens than the model has positions for, or a count below 1.
    """
    if isinstance(model, Llama):
        raise ValueError("a Llama is no encoder; python -m experiments.export writes encoders")
    encoder: Any = model.encoder if isinstance(model, Classifier) else model
    if batch < 1 or tokens < 1:
        raise ValueError(f"--batch {batch} and --tokens {tokens} must be at least 1")
    random = np.random.default_rng(seed)
    if isinstance(encoder, ImageEncoder):
        images = random.standard_normal((batch, *encoder.expected))
        return (jnp.asarray(images, jnp.float32),)
    if tokens > encoder.longest:
        raise ValueError(f"--tokens {tokens}: the model takes {encoder.longest} at most")
    ids = random.integers(0, encoder.word.num_embeddings, (batch, tokens))
    lengths = tokens - np.arange(batch) % max(1, tokens // 2)
    return jnp.asarray(ids, jnp.int32), jnp.arange(tokens) < lengths[:, None]


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.export",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", metavar="FROM")
    parser.add_argument("--to", required=True, choices=FORMATS)
    parser.add_argument("--out", required=True, metavar="FILE")
    parser.add_argument("--tokens", type=int, default=64, help="of every text")
    parser.add_argument("--batch", type=int, help="examples at once; any number if left out")
    options = parser.parse_args(arguments)
    try:
        model, _ = load_any(options.source)
        inputs = example(model, 2 if options.batch is None else options.batch, options.tokens)
        symbol = "batch" if options.batch is None else None
        FORMATS[options.to](model, *inputs, path=options.out, batch=symbol)
    except (ValueError, OSError, ImportError, DownloadError) as error:
        sys.exit(f"error: {error}")
    shapes = [f"{x.dtype.name}{[symbol or x.shape[0], *x.shape[1:]]}" for x in inputs]
    size = pathlib.Path(options.out).stat().st_size
    print(f"inputs: {', '.join(shapes)}".replace("'", ""))
    print(f"written: {options.out}, {size / 2**20:.1f} MiB")


if __name__ == "__main__":
    main(sys.argv[1:])
