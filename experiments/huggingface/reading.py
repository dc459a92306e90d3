"""Directories of Hugging Face into modules of `experiments.models`."""

import pathlib
from collections.abc import Mapping
from typing import Any, get_args

import numpy as np
from flax import nnx

import jaxsparse as js
from experiments.filling import fill
from experiments.huggingface.configuration import CONFIG, OURS, read_config, sizes_of
from experiments.huggingface.layouts import LAYOUTS, Layout
from experiments.models.encoders import Classifier, ImageEncoder, Pool, TextEncoder
from experiments.models.llama import Llama
from experiments.models.sizes import ImageSizes, LlamaSizes, TextSizes
from experiments.registry import near_misses
from jaxsparse.export import tensorfile
from jaxsparse.text import shorten

Encoder = TextEncoder | ImageEncoder
WEIGHTS = "model.safetensors"
# Says which of several files a tensor is in.
INDEX = "model.safetensors.index.json"
# Tensors of a head of ours, and of a head in transformers that is the same.
HEAD, THEIR_HEAD = "head", "classifier"


def load(directory: str | pathlib.Path) -> Encoder | Llama:
    """The encoder or decoder that a Hugging Face directory holds, in float32.

    BERT, RoBERTa, DistilBERT and ViT, with or without a head, which is left out, and Llama with
    its head; also what `save` wrote, in any of its forms. Every parameter comes from the file,
    and every tensor of the file is either used or of a part that is known to be left out (the
    pooler, heads, position_ids).

    Args:
      directory: with config.json and model.safetensors, or the parts of it and their index.

    Returns:
      A `TextEncoder`, called as model(ids, mask), an `ImageEncoder`, called as model(images), or
      a `Llama`, called as model(tokens). Dropout rates of the config are not used.

    Raises:
      FileNotFoundError: a file is missing.
      ValueError: an unknown architecture, a size that makes no sense, a tensor that is
        missing, of another shape, or not known; names the file and the key or tensor.
    """
    return _model(*_open(directory))


def load_classifier(directory: str | pathlib.Path) -> Classifier:
    """The encoder and the head that `save` wrote of a `Classifier`, or a ViTForImageClassification.

    Raises:
      FileNotFoundError: as `load`.
      ValueError: as `load`, and where there is no such head. Those of transformers' text
        classifiers read a pooler, which ours have not.
    """
    directory, config, tensors = _open(directory)
    encoder = _model(directory, config, tensors)
    pool, name = head_of(config)
    head = {("kernel",): f"{name}.weight", ("bias",): f"{name}.bias"}
    known = pool in get_args(Pool) and not isinstance(encoder, Llama)
    if not known or not set(head.values()) <= set(tensors):
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
    assert not isinstance(encoder, Llama)
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
    file = weights_of(directory)
    tensors, stored = {}, {}
    for full, tensor in _stored(file).items():
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


def weights_of(directory: pathlib.Path) -> pathlib.Path:
    """The file with the weights, or that which says in which files they are.

    Raises:
      FileNotFoundError: neither is there.
    """
    for file in (directory / WEIGHTS, directory / INDEX):
        if file.is_file():
            return file
    others = sorted(path.name for path in directory.glob("*model*"))
    raise FileNotFoundError(
        f"{directory / WEIGHTS} is not there{', but ' + ', '.join(others) if others else ''}; "
        "weights are read from safetensors files, and model.save_pretrained(directory, "
        "safe_serialization=True) of transformers writes them"
    )


def _stored(file: pathlib.Path) -> dict[str, Any]:
    """Every tensor of a file, or of the files that an index names."""
    if file.name == WEIGHTS:
        return js.load_safetensors(file)
    places = tensorfile.parse(file.read_bytes(), str(file)).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise ValueError(f"{file}: weight_map = {shorten(places)} must be file names by tensor")
    for name, place in places.items():
        if not isinstance(place, str) or pathlib.Path(place).name != place:
            raise ValueError(f"{file}: {name!r} is in {shorten(place)}, which is no file beside it")
    found: dict[str, Any] = {}
    for place in sorted({*places.values()}):
        part = file.with_name(place)
        if not part.is_file():
            raise FileNotFoundError(f"{part} is not there, and {file} names it")
        tensors = js.load_safetensors(part)
        for name in set(tensors) ^ {name for name, other in places.items() if other == place}:
            here = "has" if name in tensors else "lacks"
            raise ValueError(f"{part} {here} the tensor {name!r}; {file} says otherwise")
        found |= tensors
    return found


def _open(directory: str | pathlib.Path) -> tuple[pathlib.Path, dict[str, Any], dict[str, Any]]:
    directory = pathlib.Path(directory)
    config = read_config(directory)
    sizes_of(config, directory / CONFIG)  # a config that makes no sense is told before reading
    return directory, config, read_tensors(directory, LAYOUTS[config["model_type"]])


def _model(
    directory: pathlib.Path, config: Mapping[str, Any], tensors: Mapping[str, Any]
) -> Encoder | Llama:
    sizes, layout = sizes_of(config, directory / CONFIG), LAYOUTS[config["model_type"]]

    def build() -> Encoder | Llama:
        if isinstance(sizes, LlamaSizes):
            return Llama(sizes, rngs=nnx.Rngs(0))
        if isinstance(sizes, ImageSizes):
            return ImageEncoder(sizes, rngs=nnx.Rngs(0))
        assert isinstance(sizes, TextSizes)
        return TextEncoder(sizes, rngs=nnx.Rngs(0))

    empty = nnx.eval_shape(build)
    names = {path: layout.name_of(path) for path, _ in nnx.to_flat_state(nnx.state(empty))}
    others = sorted(set(tensors) - {*names.values()})
    if unknown := [name for name in others if not layout.ignores(name)]:
        raise ValueError(
            f"{weights_of(directory)}: {unknown[0]!r}, one of {len(unknown)}, is no tensor of a "
            f"{config['model_type']} that can be loaded{near_misses(unknown[0], names.values())}"
        )
    return _fill(empty, names, tensors, directory)


def _fill(
    module: Any,
    names: Mapping[tuple[Any, ...], str],
    tensors: Mapping[str, Any],
    directory: pathlib.Path,
) -> Any:
    shapes = {name: np.shape(tensor) for name, tensor in tensors.items()}
    return fill(module, names, shapes, tensors.__getitem__, weights_of(directory), by=CONFIG)
