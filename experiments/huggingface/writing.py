"""Modules of `experiments.models` into directories that others read."""

import errno
import json
import os
import pathlib
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from flax import nnx

import jaxsparse as js
from experiments.huggingface.configuration import CONFIG, FORMS, OURS, Form, read_config, sizes_of
from experiments.huggingface.layouts import LAYOUTS, Layout
from experiments.huggingface.reading import HEAD, THEIR_HEAD, WEIGHTS, Encoder, read_tensors
from experiments.models.encoders import Classifier, ImageEncoder, TextEncoder
from experiments.models.llama import Llama
from experiments.models.sizes import ACTIVATIONS, LlamaSizes, Sizes
from experiments.weight_files import to_torch
from jaxsparse.export import tensorfile
from jaxsparse.files import PART, naming, replacing

# What goes along unchanged, where the source has it.
COPIED = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "preprocessor_config.json",
    "generation_config.json",
    "chat_template.jinja",
)
# Parts of a layer whose inputs are heads or neurons, not outputs.
_READS = ("output", "down")


class _Widths(NamedTuple):
    """Heads and neurons of every layer."""

    heads: list[int]
    hidden: list[int]


def save(
    model: Encoder | Classifier | Llama,
    directory: str | pathlib.Path,
    source: str | pathlib.Path,
    form: Form = "dense",
) -> None:
    """Writes config.json, model.safetensors in float32, and the tokenizer.

    Layers of a model that `graph.shrink_model` made differ in size, which a config.json of
    Hugging Face cannot say. `form` chooses how they are stored; what the model computes is
    the same in all three, up to rounding:

    - "dense": every layer has all heads, and as many neurons as the widest; what is gone is
      zeros. transformers 4 and 5 read it, and multiply by the zeros of the heads.
    - "pruned_heads": heads that are gone are not stored, and `pruned_heads` counts them; neurons
      are as for "dense". transformers up to 4.57 read it, 5 refuses the shapes. Not for a
      `Llama`.
    - "exact": every layer as it is, but for a head that is narrower, which gets zeros. `load`
      alone reads it.

    config.json says which, in `jaxsparse.form`, beside the heads and neurons of every layer. Heads
    that are left come first, so their numbers are not those of the source. The head of a
    `Classifier` becomes `head.weight` and `head.bias`: `load_classifier` reads it, transformers,
    which has none like it, says that it does not. A ViT that pools the first token is
    transformers' ViTForImageClassification, and is stored as that.

    Args:
      model: an encoder, a classifier or a decoder; packed weights in it are stored dense.
      directory: where to; made if it is not there. A model in it is replaced as a whole: a
        save that fails leaves it as it was, one that is killed may leave no config.json, which
        `load` refuses. Files of the tokenizer that `source` has not are deleted.
      source: the directory that the model was loaded from. Its config.json and tokenizer go
        along, and the pooler, which no module of ours has, with an encoder alone.
      form: of the layers.

    Raises:
      FileNotFoundError: `source` has no config.json or no weights.
      ValueError: no such form, or not for this model; `source` is of another model, in a size, the
        epsilon of the norms or the activation, or is `directory` itself; a head that is not one
        linear layer. Nothing is written then.
      OSError: a file cannot be written, or a directory has its name.
    """
    directory, source = pathlib.Path(directory), pathlib.Path(source)
    if form not in FORMS:
        raise ValueError(f"form = {form!r} is none of {', '.join(FORMS)}")
    if directory.resolve() == source.resolve():
        raise ValueError(f"{directory} is the source itself; another directory would work")
    config = read_config(source)
    table = LAYOUTS[config["model_type"]]
    sizes = sizes_of(config, source / CONFIG)
    encoder = model.encoder if isinstance(model, Classifier) else model
    _check(encoder, sizes, source / CONFIG)
    if form == "pruned_heads" and isinstance(encoder, Llama):
        raise ValueError(f"form = {form!r} is none that transformers has for a Llama; 'dense' is")

    left = _widths(encoder, sizes)
    full = [config[table.keys["heads"]]] * len(left.heads)
    widest = max(left.hidden)
    stored = left
    if form != "exact":
        heads = full if form == "dense" else left.heads
        stored = _Widths(heads, [widest] * len(heads))
    tensors = {}
    for path, array in _arrays(encoder):
        array = _filled_up(path, array, left, stored, sizes)
        tensors[table.name_of(path)] = to_torch(array) if path[-1] == "kernel" else array
    config["architectures"] = [table.encoder]
    config[OURS] = {"form": form, **left._asdict()}
    config[table.keys["hidden"]] = widest
    config.pop("pruned_heads", None)
    if form == "pruned_heads":
        config["pruned_heads"] = {
            str(layer): [*range(left.heads[layer], count)]
            for layer, count in enumerate(full)
            if left.heads[layer] < count
        }
    for key in {"dtype", "torch_dtype"} & set(config):
        config[key] = "float32"
    if isinstance(model, Classifier):
        tensors = _with_head(model, table, tensors, config)
    elif isinstance(model, Llama):
        tensors = {table.full_name_of(name): tensor for name, tensor in tensors.items()}
    else:
        others = read_tensors(source, table).items()
        tensors |= {name: np.asarray(x) for name, x in others if name.startswith("pooler.")}

    copied = {name: (source / name).read_bytes() for name in COPIED if (source / name).is_file()}
    _replace(directory, config, tensors, copied)


def _replace(
    directory: pathlib.Path,
    config: Mapping[str, Any],
    tensors: Mapping[str, np.ndarray],
    copied: Mapping[str, bytes],
) -> None:
    """Writes all files of a directory; at no time do those of two models stand there together.

    Everything is written beside first, so that a full disk leaves what was there. Then the
    old config.json goes, without which nothing is loaded, and the new one comes last.
    """
    for name in (CONFIG, WEIGHTS, *COPIED):
        if (file := directory / name).is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(file))
    with naming(directory):
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=directory, suffix=PART) as folder:
            new = pathlib.Path(folder)
            # transformers reads no file that does not state this format.
            tensorfile.write(new / WEIGHTS, tensors, {"format": "pt"})
            text = json.dumps(config, indent=2).encode() + b"\n"
            for name, content in (*copied.items(), (CONFIG, text)):
                with replacing(new / name) as file:
                    file.write(content)
            for name in (CONFIG, *sorted(set(COPIED) - set(copied))):
                (directory / name).unlink(missing_ok=True)
            for name in (*copied, WEIGHTS, CONFIG):
                os.replace(new / name, directory / name)


def _check(model: Encoder | Llama, sizes: Sizes, file: pathlib.Path) -> None:
    """Raises ValueError unless a config.json states what the model has and computes."""
    if isinstance(model, Llama) != isinstance(sizes, LlamaSizes):
        raise ValueError(f"{file} is of another model than {type(model).__name__}")
    layers: list[Any] = list(model.layers)
    parts = [x.feed_forward if isinstance(model, Llama) else x for x in layers]
    norms = [model.norm, *(getattr(x, name) for x in layers for name in _norms(model))]
    found: dict[str, Any] = {
        "width": model.norm.num_features,
        "head_dim": layers[0].attention.head_dim,
        "layers": len(layers),
        "epsilon": _only({norm.epsilon for norm in norms}),
        "activation": _only({_name_of(part.activation, sizes) for part in parts}),
    }
    stated = {"width": sizes.width, "head_dim": sizes.head_dim, "layers": len(sizes.heads)}
    if isinstance(model, TextEncoder):
        types = model.token_type
        found["vocabulary"] = model.word.num_embeddings
        found["positions"] = model.position.num_embeddings
        found["token_types"] = types.num_embeddings if types is not None else 0
        found["padding"] = model.padding
    elif isinstance(model, ImageEncoder):
        found["image"], _, found["channels"] = model.expected
        found["patch"] = model.patch.kernel_size[0]
        found["qkv_bias"] = layers[0].attention.query.bias is not None
    else:
        found["vocabulary"] = model.embedding.num_embeddings
        found["longest"], found["theta"] = model.longest, model.theta
        found["tied"] = model.head is None
        found["attention_bias"] = layers[0].attention.query.bias is not None
        found["mlp_bias"] = layers[0].feed_forward.down.bias is not None
    stated |= {name: getattr(sizes, name, None) for name in found if name not in stated}
    if found != stated:
        raise ValueError(f"{file} is of another model: it states {stated}, the model has {found}")


def _norms(model: Encoder | Llama) -> tuple[str, str]:
    last = "feed_forward_norm" if isinstance(model, Llama) else "output_norm"
    return "attention_norm", last


def _name_of(activation: Any, sizes: Sizes) -> str:
    """What config.json calls an activation: as `sizes` does where both are the same."""
    names = [name for name, known in ACTIVATIONS.items() if known is activation]
    return sizes.activation if sizes.activation in names else next(iter(names), repr(activation))


def _only(values: set[Any]) -> Any:
    """The value that all layers share; a config.json has room for one."""
    return values.pop() if len(values) == 1 else values


def _widths(model: Encoder | Llama, sizes: Sizes) -> _Widths:
    layers: list[Any] = list(model.layers)
    queries = [layer.attention.query.kernel.shape[-1] for layer in layers]
    decoder = isinstance(model, Llama)
    neurons = [layer.feed_forward.gate if decoder else layer.intermediate for layer in layers]
    return _Widths(
        # What is left of empty attention is a part of one head.
        [-(-width // sizes.head_dim) for width in queries],
        [part.kernel.shape[-1] for part in neurons],
    )


def _arrays(module: Any) -> Iterator[tuple[tuple[Any, ...], np.ndarray]]:
    params = js.unpack_params(nnx.state(module, nnx.Param))
    for path, variable in nnx.to_flat_state(params):
        yield path, np.asarray(variable.get_value(), np.float32)


def _filled_up(
    path: tuple[Any, ...], array: np.ndarray, left: _Widths, stored: _Widths, sizes: Sizes
) -> np.ndarray:
    """A parameter of a layer with zeros where heads, parts of heads and neurons are gone."""
    if path[0] != "layers":
        return array
    *_, part, last = path
    reads = part in _READS
    if "norm" in part or (reads and last == "bias"):
        return array
    layer, axis = path[1], 0 if reads else array.ndim - 1
    if path[2] == "attention":
        group = 1
        if isinstance(sizes, LlamaSizes) and part in ("key", "value"):
            group = sizes.heads[layer] // sizes.key_heads[layer]
        count, wanted = left.heads[layer] // group, (stored.heads[layer] // group, sizes.head_dim)
    else:
        count, wanted = left.hidden[layer], (stored.hidden[layer], 1)
    apart = array.reshape(*array.shape[:axis], count, -1, *array.shape[axis + 1 :])
    missing = [(0, 0)] * apart.ndim
    for at, size in enumerate(wanted, start=axis):
        missing[at] = (0, size - apart.shape[at])
    whole = np.pad(apart, missing)
    return whole.reshape(*array.shape[:axis], -1, *array.shape[axis + 1 :])


def _with_head(
    model: Classifier, table: Layout, tensors: dict[str, np.ndarray], config: dict[str, Any]
) -> dict[str, np.ndarray]:
    """Tensors of encoder and head; the config says what pools, and what the outputs are."""
    head = {path[-1] if len(path) == 1 else path: array for path, array in _arrays(model.head)}
    if not {"kernel"} <= set(head) <= {"kernel", "bias"}:
        raise ValueError(f"a head of {sorted(map(str, head))}; one linear layer can be saved")
    outputs = head["kernel"].shape[-1]
    config[OURS]["pool"] = model.pool
    if len(config.get("id2label") or ()) != outputs:
        config["id2label"] = {str(i): f"LABEL_{i}" for i in range(outputs)}
        config["label2id"] = {f"LABEL_{i}": i for i in range(outputs)}
    name = HEAD
    if model.pool == "first" and table.classifier:
        config["architectures"], name = [table.classifier], THEIR_HEAD
        # Beside a head, names of the encoder have its prefix.
        tensors = {table.prefix + key: tensor for key, tensor in tensors.items()}
    bias = head.get("bias", np.zeros(outputs, np.float32))
    return tensors | {f"{name}.weight": to_torch(head["kernel"]), f"{name}.bias": bias}
