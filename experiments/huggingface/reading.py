"""Directories of Hugging Face into modules of `experiments.models.encoders`."""

import pathlib
from collections.abc import Mapping
from typing import Any, get_args

import jax.numpy as jnp
import numpy as np
from flax import nnx

import jaxsparse as js
from experiments.huggingface.configuration import CONFIG, OURS, read_config, sizes_of
from experiments.huggingface.layouts import LAYOUTS, Layout
from experiments.models.encoders import Classifier, ImageEncoder, Pool, TextEncoder
from experiments.models.sizes import ImageSizes, TextSizes
from experiments.registry import near_misses
from experiments.weight_files import from_torch, to_torch

Encoder = TextEncoder | ImageEncoder
WEIGHTS = "model.safetensors"
# Tensors of a head of ours, and of a head in transformers that is the same.
HEAD, THEIR_HEAD = "head", "classifier"


def load(directory: str | pathlib.Path) -> Encoder:
    """The encoder that a Hugging Face directory holds, in float32.

    BERT, RoBERTa, DistilBERT and ViT, with or without a head, which is left out; also what
    `save` wrote, in any of its forms. Every parameter comes from the file, and every
    tensor of the file is either used or of a part that is known to be left out (the pooler,
    heads, position_ids).

    Args:
      directory: with config.json and model.safetensors.

    Returns:
      A `TextEncoder`, called as model(ids, mask), or an `ImageEncoder`, called as
      model(images). Dropout rates of the config are not used.

    Raises:
      FileNotFoundError: a file is missing.
      ValueError: an unknown architecture, a size that makes no sense, a tensor that is
        missing, of another shape, or not known; names the file and the key or tensor.
    """
    return _encoder(*_open(directory))


def load_classifier(directory: str | pathlib.Path) -> Classifier:
    """The encoder and the head that `save` wrote of a `Classifier`, or a ViTForImageClassification.

    Raises:
      FileNotFoundError: as `load`.
      ValueError: as `load`, and where there is no such head. Those of transformers' text
        classifiers read a pooler, which ours have not.
    """
    directory, config, tensors = _open(directory)
    encoder = _encoder(directory, config, tensors)
    pool, name = head_of(config)
    head = {("kernel",): f"{name}.weight", ("bias",): f"{name}.bias"}
    if pool not in get_args(Pool) or not set(head.values()) <= set(tensors):
        raise ValueError(
            f"{directory / CONFIG}: {OURS}.pool = {pool!r}, and {WEIGHTS} has "
            f"{sorted(set(head.values()) & set(tensors))} of {sorted(head.values())}: no "
            "classifier that was saved here; Classifier(load(directory), outputs, rngs=...) "
            "makes a new one"
        )
    shape = np.shape(tensors[head["bias",]])
    if len(shape) != 1 or not shape[0]:
        raise ValueError(
            f"{directory / WEIGHTS}: {name}.bias has shape {shape}; that of a linear head is "
            "(outputs,)"
        )
    model = Classifier(encoder, shape[0], pool=pool, rngs=nnx.Rngs(0))
    model.head = _fill(model.head, head, tensors, directory)
    return model


def head_of(config: Mapping[str, Any]) -> tuple[Any, str]:
    """What the head of a directory pools, None where there is none of ours, and its name."""
    theirs = LAYOUTS[config["model_type"]].classifier
    if theirs in (config.get("architectures") or ()):
        return "first", THEIR_HEAD
    return config.get(OURS, {}).get("pool"), HEAD


def read_tensors(directory: pathlib.Path, layout: Layout) -> dict[str, Any]:
    """All tensors of a directory, named as in a file of the bare encoder.

    Raises:
      FileNotFoundError: no weights there.
      ValueError: the file is damaged, or has a tensor twice under names that mean the same.
    """
    file = directory / WEIGHTS
    if not file.is_file():
        others = sorted(path.name for path in directory.glob("*model*"))
        raise FileNotFoundError(
            f"{file} is not there{', but ' + ', '.join(others) if others else ''}; weights are "
            "read from one safetensors file, and model.save_pretrained(directory, "
            "safe_serialization=True, max_shard_size='100GB') of transformers writes it"
        )
    tensors, stored = {}, {}
    for full, tensor in js.load_safetensors(file).items():
        name = full.removeprefix(layout.prefix)
        # Names of the layer norm's parameters in files that were converted from TensorFlow.
        for old, new in ((".gamma", ".weight"), (".beta", ".bias")):
            name = name.removesuffix(old) + new if name.endswith(old) else name
        if name in stored:
            raise ValueError(
                f"{file}: {stored[name]!r} and {full!r} are both the tensor {name!r}; one must go"
            )
        tensors[name], stored[name] = tensor, full
    return tensors


def _open(directory: str | pathlib.Path) -> tuple[pathlib.Path, dict[str, Any], dict[str, Any]]:
    directory = pathlib.Path(directory)
    config = read_config(directory)
    sizes_of(config, directory / CONFIG)  # a config that makes no sense is told before reading
    return directory, config, read_tensors(directory, LAYOUTS[config["model_type"]])


def _encoder(
    directory: pathlib.Path, config: Mapping[str, Any], tensors: Mapping[str, Any]
) -> Encoder:
    sizes, layout = sizes_of(config, directory / CONFIG), LAYOUTS[config["model_type"]]

    def build() -> Encoder:
        if isinstance(sizes, ImageSizes):
            return ImageEncoder(sizes, rngs=nnx.Rngs(0))
        assert isinstance(sizes, TextSizes)
        return TextEncoder(sizes, rngs=nnx.Rngs(0))

    empty = nnx.eval_shape(build)
    names = {path: layout.name_of(path) for path, _ in nnx.to_flat_state(nnx.state(empty))}
    others = sorted(set(tensors) - {*names.values()})
    if unknown := [name for name in others if not layout.ignores(name)]:
        raise ValueError(
            f"{directory / WEIGHTS}: {unknown[0]!r}, one of {len(unknown)}, is no tensor of a "
            f"{config['model_type']} that can be loaded{near_misses(unknown[0], names.values())}"
        )
    return _fill(empty, names, tensors, directory)


def _fill(
    module: Any,
    names: Mapping[tuple[Any, ...], str],
    tensors: Mapping[str, Any],
    directory: pathlib.Path,
) -> Any:
    """The module with its parameters taken from tensors in PyTorch's layout."""
    file = directory / WEIGHTS
    graph, state = nnx.split(module)
    filled = []
    for path, variable in nnx.to_flat_state(state):
        name = names[path]
        if name not in tensors:
            raise ValueError(f"{file} has no tensor {name!r}{near_misses(name, tensors)}")
        array = np.asarray(tensors[name])
        turn = path[-1] == "kernel"
        shape = to_torch(np.broadcast_to(0, variable.shape)).shape if turn else variable.shape
        if array.shape != shape:
            raise ValueError(
                f"{file}: {name!r} has shape {array.shape}; by {CONFIG} it would have {shape}"
            )
        array = np.ascontiguousarray(from_torch(array) if turn else array)
        filled.append((path, variable.replace(jnp.asarray(array, variable.dtype))))
    return nnx.merge(graph, nnx.from_flat_state(filled))
