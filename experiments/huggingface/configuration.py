"""config.json: which model a directory holds, and the sizes of it."""

import math
import pathlib
from collections.abc import Mapping
from typing import Any, Literal, get_args

from experiments.huggingface.layouts import LAYOUTS
from experiments.models.sizes import ACTIVATIONS, ImageSizes, LlamaSizes, Sizes, TextSizes
from experiments.registry import near_misses
from jaxsparse.export import tensorfile
from jaxsparse.text import shorten

CONFIG = "config.json"
# Our own key: how the weights are laid out, and the head that we saved with them.
OURS = "jaxsparse"
Form = Literal["dense", "pruned_heads", "exact"]
FORMS: tuple[Form, ...] = get_args(Form)

# What a config.json may leave out, as Hugging Face fills it in.
_DEFAULTS: dict[str, Any] = {
    "layer_norm_eps": 1e-12,
    "type_vocab_size": 2,
    "qkv_bias": True,
    "num_channels": 3,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e4,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "mlp_bias": False,
}
# What is still believed of a count: more is a damaged file, and would fill the memory.
_MOST, _MOST_LAYERS = 2**31 - 1, 1000
_PADDING = "pad_token_id"
# Variants with other arithmetic, or other inputs.
_REFUSED: dict[str, tuple[Any, ...]] = {
    "position_embedding_type": ("absolute", None),
    "is_decoder": (False, None),
    "add_cross_attention": (False, None),
}
# Where positions are scaled, in which transformers up to 4 and from 5.
_ROPES = ("rope_scaling", "rope_parameters")


def read_config(directory: str | pathlib.Path) -> dict[str, Any]:
    """The config.json of a directory whose architecture we know.

    Raises:
      FileNotFoundError: no such file; says what the directory should hold.
      ValueError: not JSON, an unknown `model_type`, a variant with other arithmetic, or a key of
        another type; names the file and the key.
    """
    file = pathlib.Path(directory) / CONFIG
    if not file.parent.is_dir():
        raise FileNotFoundError(
            f"{file} is not there, for {file.parent} is no folder; a finished run's, or a Hugging "
            "Face directory would work"
        )
    if not file.is_file():
        raise FileNotFoundError(
            f"{file} is not there; a Hugging Face directory holds {CONFIG}, model.safetensors "
            "and, for text, tokenizer.json"
        )
    config = tensorfile.parse(file.read_bytes(), str(file))
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in LAYOUTS:
        raise ValueError(
            f"{file}: model_type {kind!r} is no architecture that can be "
            f"loaded{near_misses(str(kind), LAYOUTS)}"
        )
    for key, allowed in _REFUSED.items():
        if config.get(key) not in allowed:
            raise ValueError(f"{file}: {key} = {config[key]!r}; only {allowed[0]!r} can be loaded")
    ours = config.get(OURS, {"form": "dense"})
    if not isinstance(ours, dict) or ours.get("form") not in FORMS:
        raise ValueError(f"{file}: {OURS} = {ours!r} has no form that is one of {', '.join(FORMS)}")
    names = config.get("architectures")
    if names is not None and not (
        isinstance(names, list) and all(isinstance(name, str) for name in names)
    ):
        raise ValueError(f"{file}: architectures = {shorten(names)} must be a list of names")
    labels = config.get("id2label")
    if labels is not None and not isinstance(labels, dict):
        raise ValueError(
            f"{file}: id2label = {shorten(labels)} must be an object, a name by number"
        )
    return config


def sizes_of(config: Mapping[str, Any], file: str | pathlib.Path = CONFIG) -> Sizes:
    """The sizes that a config.json states, layer by layer where heads were pruned.

    Args:
      config: of `read_config`.
      file: where it comes from, for errors.

    Returns:
      `TextSizes`, `ImageSizes` for a model of images, or `LlamaSizes`.

    Raises:
      ValueError: a key that is missing, or of another type, or does not fit the others.
    """
    read = _Reader(config, file)
    width, heads = read.whole("width"), read.whole("heads")
    depth = read.whole("depth", _MOST_LAYERS)
    apart = "head_dim" in read.keys and config.get(read.keys["head_dim"]) is not None
    if width % heads and not apart:
        raise ValueError(
            f"{file}: {read.keys['heads']} = {heads} does not divide {read.keys['width']} = {width}"
        )
    activation = read("activation", str)
    if activation not in ACTIVATIONS:
        raise ValueError(
            f"{file}: {read.keys['activation']} = {activation!r}"
            f"{near_misses(activation, ACTIVATIONS)}"
        )
    kept, hidden = read.layers(heads, depth)
    # DistilBERT has this number in its code.
    epsilon = read.positive("epsilon") if "epsilon" in read.keys else 1e-12
    head_dim = read.whole("head_dim") if apart else width // heads
    common = (width, head_dim, kept, hidden, epsilon, activation)
    if "theta" in read.keys:
        return _llama(read, heads, *common)
    if "image" not in read.keys:
        text = TextSizes(
            *common,
            vocabulary=read.whole("vocabulary"),
            positions=read.whole("positions"),
            token_types=read.whole("token_types") if "token_types" in read.keys else 0,
            padding=padding_of(config, file) if "padding" in read.keys else None,
        )
        if text.longest < 1:
            raise ValueError(
                f"{file}: {read.keys['positions']} = {text.positions} leaves no position: they are "
                f"counted from behind {_PADDING} = {text.padding}"
            )
        return text
    image, patch = read.whole("image"), read.whole("patch")
    if image % patch:
        raise ValueError(f"{file}: patch_size = {patch} does not divide image_size = {image}")
    return ImageSizes(
        *common,
        image=image,
        patch=patch,
        channels=read.whole("channels"),
        qkv_bias=read("qkv_bias", bool),
    )


def _llama(read: "_Reader", whole_heads: int, *common: Any) -> LlamaSizes:
    _, head_dim, heads, *_ = common
    file, config, key = read.file, read.config, read.keys["key_heads"]
    key_heads = read.whole("key_heads") if config.get(key) is not None else whole_heads
    if whole_heads % key_heads:
        raise ValueError(
            f"{file}: {key} = {key_heads} does not divide {read.keys['heads']} = {whole_heads}"
        )
    group = whole_heads // key_heads
    if parts := [count for count in heads if count % group]:
        raise ValueError(
            f"{file}: a layer of {parts[0]} heads; {group} share one of keys, and go together"
        )
    if head_dim % 2:
        raise ValueError(f"{file}: heads of {head_dim} have no pairs to turn; even ones have")
    theta = read.positive("theta")
    for key in _ROPES:
        rope = config.get(key)
        if rope is None:
            continue
        kind = rope.get("rope_type", rope.get("type")) if isinstance(rope, dict) else rope
        if kind != "default":
            raise ValueError(f"{file}: {key} = {shorten(rope)}; only 'default' can be loaded")
        stated = rope.get("rope_theta", theta)
        if type(stated) not in (int, float) or not 0 < stated < math.inf:
            raise ValueError(f"{file}: {key}.rope_theta = {_shown(stated)} must be above 0")
        theta = float(stated)
    return LlamaSizes(
        *common,
        vocabulary=read.whole("vocabulary"),
        longest=read.whole("longest"),
        key_heads=tuple(count // group for count in heads),
        theta=theta,
        tied=read("tied", bool),
        attention_bias=read("attention_bias", bool),
        mlp_bias=read("mlp_bias", bool),
    )


def padding_of(config: Mapping[str, Any], file: str | pathlib.Path = CONFIG) -> int:
    """The id of padding of a model of text, as its config.json or its architecture has it.

    Args:
      config: of `read_config`.
      file: where it comes from, for errors.

    Raises:
      ValueError: `pad_token_id` is none of the vocabulary's ids.
    """
    read = _Reader(config, file)
    padding, vocabulary = config.get(_PADDING, read.layout.padding), read.whole("vocabulary")
    if type(padding) is not int or not 0 <= padding < vocabulary:
        raise ValueError(
            f"{file}: {_PADDING} = {_shown(padding)} must be an id from 0 to {vocabulary - 1}, by "
            f"{read.keys['vocabulary']}"
        )
    return padding


class _Reader:
    """Values of a config.json by our names for them; errors name the file and its key."""

    def __init__(self, config: Mapping[str, Any], file: str | pathlib.Path):
        self.config, self.file = config, file
        self.layout = LAYOUTS[config["model_type"]]
        self.keys = self.layout.keys

    def __call__(self, name: str, kind: type) -> Any:
        key = self.keys[name]
        if key not in self.config and key not in _DEFAULTS:
            raise ValueError(f"{self.file} has no {key}{near_misses(key, self.config)}")
        value = self.config.get(key, _DEFAULTS.get(key))
        whole = type(value) is int and abs(value) <= _MOST
        if not (type(value) is kind or (kind is float and whole)):
            raise ValueError(f"{self.file}: {key} = {_shown(value)} is no {kind.__name__}")
        return kind(value)

    def whole(self, name: str, most: int = _MOST) -> int:
        value = self(name, int)
        if not 1 <= value <= most:
            raise ValueError(
                f"{self.file}: {self.keys[name]} = {_shown(value)} must be from 1 to {most}"
            )
        return value

    def positive(self, name: str) -> float:
        value = self(name, float)
        if not 0 < value < math.inf:
            raise ValueError(
                f"{self.file}: {self.keys[name]} = {value} must be above 0, and finite"
            )
        return value

    def layers(self, heads: int, depth: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Heads and neurons of every layer."""
        ours = self.config.get(OURS, {})
        if ours.get("form") == "exact":
            kept_heads = self._per_layer(ours, "heads", depth, heads)
            return kept_heads, self._per_layer(ours, "hidden", depth, self.whole("hidden"))
        pruned = {} if (given := self.config.get("pruned_heads")) is None else given
        kept = [heads] * depth
        layers = {str(layer): layer for layer in range(depth)}
        for layer, gone in pruned.items() if isinstance(pruned, dict) else [("", pruned)]:
            if layer not in layers or not isinstance(gone, list) or not _some(gone, heads):
                raise ValueError(
                    f"{self.file}: pruned_heads = {pruned!r} must be lists of some, not all, of "
                    f"{heads} heads, by number of one of {depth} layers"
                )
            kept[layers[layer]] -= len(gone)
        return tuple(kept), (self.whole("hidden"),) * depth

    def _per_layer(
        self, ours: Mapping[str, Any], name: str, depth: int, most: int
    ) -> tuple[int, ...]:
        counts = ours.get(name)
        if (
            not isinstance(counts, list)
            or len(counts) != depth
            or not all(type(count) is int and 1 <= count <= most for count in counts)
        ):
            raise ValueError(
                f"{self.file}: {OURS}.{name} = {shorten(counts)} must be {depth} numbers from 1 to "
                f"{most}, one of every layer"
            )
        return tuple(counts)


def _shown(value: Any) -> str:
    """A value as the file has it, unless it is long."""
    return shorten(value) if value is not None else "null"


def _some(gone: list[Any], heads: int) -> bool:
    """Whether a list holds different numbers of heads, and not all of them."""
    right = all(type(head) is int and 0 <= head < heads for head in gone)
    return right and len(set(gone)) == len(gone) < heads
