"""What can be saved: a directory of Hugging Face, or what a run of the model "bert" left."""

import pathlib
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import nnx

import jaxsparse as js
from experiments import pretrained, workdir
from experiments.huggingface.configuration import read_config
from experiments.huggingface.reading import Encoder, head_of, load, load_classifier
from experiments.models.encoders import Classifier, TextEncoder
from experiments.models.llama import Llama
from jaxsparse.files import naming
from jaxsparse.trees import leaves_by_path, replace_by_path


class Source(NamedTuple):
    """A model, and the directory with the config.json and the tokenizer that it began from."""

    model: Encoder | Classifier | Llama
    directory: pathlib.Path


def load_any(name: str) -> Source:
    """The model of a finished run or of a directory, with its head if that is one of ours.

    Args:
      name: the workdir of a run, a directory of Hugging Face, or "minilm".

    Raises:
      ValueError, FileNotFoundError: as `load_run` and `load`.
      DownloadError: MiniLM could not be fetched.
    """
    if workdir.finished(pathlib.Path(name)):
        return load_run(name)
    directory = pretrained.directory(name)
    pool, _ = head_of(read_config(directory))
    return Source((load if pool is None else load_classifier)(directory), directory)


def load_run(folder: str | pathlib.Path) -> Source:
    """The classifier of a finished run, without the heads and neurons that its masks empty.

    Args:
      folder: the run's workdir.

    Raises:
      ValueError: no finished run there, or one of another model; weights or masks that do not
        fit the directory that the run's config names.
      FileNotFoundError: that directory lacks a file.
    """
    folder = pathlib.Path(folder)
    cure = "run it again, or name the folder of another run"
    if not workdir.finished(folder):
        raise ValueError(f"{folder} holds no finished run; {cure}")
    options = workdir.read_json(folder / workdir.CONFIG, cure, dict)["model"]
    if options["name"] != "bert":
        raise ValueError(f"{folder} is a run of the model {options['name']!r}, not 'bert'; {cure}")
    source = pretrained.directory(options["weights"])
    encoder = load(source)
    assert isinstance(encoder, TextEncoder)  # or the run had not begun
    weights, masks = _arrays(folder / "weights.npz"), _arrays(folder / "masks.npz")
    model = Classifier(encoder, weights["head/bias"].size, rngs=nnx.Rngs(0))
    params = nnx.state(model, nnx.Param)
    for path, leaf in leaves_by_path(params).items():
        if path not in weights or weights[path].shape != leaf.shape:
            found = weights[path].shape if path in weights else "no such weight"
            raise ValueError(
                f"{path!r} has shape {leaf.shape} in {source}, and {folder}/weights.npz has {found}"
            )
    nnx.update(model, replace_by_path(params, {p: jnp.asarray(x) for p, x in weights.items()}))
    if masks:
        ids = jnp.arange(16).reshape(2, 8) % encoder.word.num_embeddings
        smaller, _ = js.graph.shrink_model(model, masks, ids, ids < 12)
        assert isinstance(smaller, Classifier)
        model = smaller
    return Source(model, source)


def _arrays(file: pathlib.Path) -> dict[str, np.ndarray]:
    with naming(file), np.load(file) as archive:
        return dict(archive)
