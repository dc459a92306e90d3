"""config.json: which model a directory holds, and the sizes of it."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any, Literal, get_args

from experiments.huggingface.layouts import LAYOUTS
from experiments.models.sizes import ACTIVATIONS, ImageSizes, Sizes, TextSizes
from experiments.registry import near_misses

CONFIG = "config.json"
# Our own key: how the weights are laid out, and the head that we saved with them.
OURS = "jaxsparse"
Form = Literal["dense", "pruned_heads", "exact"]
FORMS: tuple[Form, ...] = get_args(Form)

# What a config.json may leave out, as Hugging Face fills it in.
_DEFAULTS: dict[str, Any] = {
    "layer_norm_eps": 1e-12,
    "type_vocab_size": 2,
    "pad_token_id": 1,
    "qkv_bias": True,
    "num_channels": 3,
}
# Variants with other arithmetic, or other inputs.
_REFUSED: dict[str, tuple[Any, ...]] = {
    "position_embedding_type": ("absolute", None),
    "is_decoder": (False, None),
    "add_cross_attention": (False, None),
}


def read_config(directory: str | pathlib.Path) -> dict[str, Any]:
    """The config.json of a directory whose architecture we know.

    Raises:
      FileNotFoundError: no such file; says what the directory should hold.
      ValueError: not JSON, an unknown `model_type`, or a variant with other arithmetic;
        names the file and the key.
    """
    file = pathlib.Path(directory) / CONFIG
    if not file.is_file():
        raise FileNotFoundError(
            f"{file} is not there; a Hugging Face directory holds {CONFIG}, model.safetensors "
            "and, for text, tokenizer.json"
        )
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"{file} holds {config!r}, not an object")
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
    return config


def sizes_of(config: Mapping[str, Any], file: str | pathlib.Path = CONFIG) -> Sizes:
    """The sizes that a config.json states, layer by layer where heads were pruned.

    Args:
      config: of `read_config`.
      file: where it comes from, for errors.

    Returns:
      `TextSizes`, or `ImageSizes` for a model of images.

    Raises:
      ValueError: a key that is missing, or of another type, or does not fit the others.
    """
    read = _Reader(config, file)
    width, heads, depth = read.whole("width"), read.whole("heads"), read.whole("depth")
    if width % heads:
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
    epsilon = read("epsilon", float) if "epsilon" in read.keys else 1e-12
    common = (width, width // heads, kept, hidden, epsilon, activation)
    if "image" not in read.keys:
        return TextSizes(
            *common,
            vocabulary=read.whole("vocabulary"),
            positions=read.whole("positions"),
            token_types=read("token_types", int) if "token_types" in read.keys else 0,
            padding=read("padding", int) if "padding" in read.keys else None,
        )
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


class _Reader:
    """Values of a config.json by our names for them; errors name the file and its key."""

    def __init__(self, config: Mapping[str, Any], file: str | pathlib.Path):
        self.config, self.file = config, file
        self.keys = LAYOUTS[config["model_type"]].keys

    def __call__(self, name: str, kind: type) -> Any:
        key = self.keys[name]
        value = self.config.get(key, _DEFAULTS.get(key))
        if value is None:
            raise ValueError(f"{self.file} has no {key}{near_misses(key, self.config)}")
        if kind is float and isinstance(value, int):
            value = float(value)
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise ValueError(f"{self.file}: {key} = {value!r} is no {kind.__name__}")
        return value

    def whole(self, name: str) -> int:
        if (value := self(name, int)) < 1:
            raise ValueError(f"{self.file}: {self.keys[name]} = {value} must be at least 1")
        return value

    def layers(self, heads: int, depth: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Heads and neurons of every layer."""
        ours = self.config.get(OURS, {})
        if ours.get("form") == "exact":
            return self._per_layer(ours, "heads", depth), self._per_layer(ours, "hidden", depth)
        pruned = self.config.get("pruned_heads") or {}
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

    def _per_layer(self, ours: Mapping[str, Any], name: str, depth: int) -> tuple[int, ...]:
        counts = ours.get(name)
        if not isinstance(counts, list) or [type(c) for c in counts if c] != [int] * depth:
            raise ValueError(
                f"{self.file}: {OURS}.{name} = {counts!r} must be {depth} numbers above 0, one of "
                "every layer"
            )
        return tuple(counts)


def _some(gone: list[Any], heads: int) -> bool:
    """Whether a list holds different numbers of heads, and not all of them."""
    right = all(type(head) is int and 0 <= head < heads for head in gone)
    return right and len(set(gone)) == len(gone) < heads
