"""GGUF files into `experiments.models.llama`."""

import math
import pathlib
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import nnx

from experiments.filling import fill
from experiments.gguf.header import Entry, Header, package, read_header
from experiments.gguf.tokens import read_tokenizer
from experiments.models.llama import Llama
from experiments.models.sizes import LlamaSizes
from experiments.registry import near_misses
from experiments.tokenizer import Tokenizer
from jaxsparse.text import shorten

# Path of a module -> its tensor in the file, with {} for the number of a layer.
TENSORS = {
    "embedding": "token_embd",
    "norm": "output_norm",
    "head": "output",
    "layers/{}/attention_norm": "blk.{}.attn_norm",
    "layers/{}/attention/query": "blk.{}.attn_q",
    "layers/{}/attention/key": "blk.{}.attn_k",
    "layers/{}/attention/value": "blk.{}.attn_v",
    "layers/{}/attention/output": "blk.{}.attn_output",
    "layers/{}/feed_forward_norm": "blk.{}.ffn_norm",
    "layers/{}/feed_forward/gate": "blk.{}.ffn_gate",
    "layers/{}/feed_forward/up": "blk.{}.ffn_up",
    "layers/{}/feed_forward/down": "blk.{}.ffn_down",
}
_HEAD = "output.weight"
_WIDTH, _DEPTH, _HIDDEN = "embedding_length", "block_count", "feed_forward_length"
_HEADS, _KEY_HEADS = "attention.head_count", "attention.head_count_kv"
_EPSILON, _LONGEST = "attention.layer_norm_rms_epsilon", "context_length"
_THETA, _HEAD_DIM = "rope.freq_base", "attention.key_length"
# What else may stand there, and as what: anything else changes what is computed.
_ONLY: dict[str, Any] = {
    "rope.scaling.type": "none",
    "rope.scale_linear": 1.0,
    "expert_count": 0,
    "expert_used_count": 0,
    "tensor_data_layout": "Meta AI original pth",
}
_SIZES = {_WIDTH, _DEPTH, _HIDDEN, _HEADS, _KEY_HEADS, _EPSILON, _LONGEST, _THETA, _HEAD_DIM}
_SIZES |= {"vocab_size", "rope.dimension_count", "attention.value_length"}
_MOST, _MOST_LAYERS = 2**31 - 1, 1000


class Loaded(NamedTuple):
    """A language model and its tokenizer.

    Attributes:
      model: called as model(tokens).
      tokenizer: texts to tokens, and back.
    """

    model: Llama
    tokenizer: Tokenizer


def load_gguf(file: str | pathlib.Path, dtype: Any = jnp.float32) -> Loaded:
    """The model and the tokenizer of a GGUF file.

    Args:
      file: a Llama, in any storage that the package gguf dequantises.
      dtype: of the parameters, and of what is computed.

    Raises:
      FileNotFoundError: no such file.
      ValueError: as `load`; a tokenizer of a kind that is not known here, or with ids that are no
        row of the embeddings.
    """
    file, header = pathlib.Path(file), read_header(file)
    rows, tokenizer = sizes_of(header, file).vocabulary, read_tokenizer(file, header)
    if tokenizer.vocabulary > rows:
        raise ValueError(
            f"{file}: tokenizer.ggml.tokens has {tokenizer.vocabulary} tokens; "
            f"'token_embd.weight' has {rows} rows"
        )
    return Loaded(_model(file, header, dtype), tokenizer)


def load(file: str | pathlib.Path, dtype: Any = jnp.float32) -> Llama:
    """The model of a GGUF file, dequantised.

    Exactly what the file says: every parameter comes from it, every tensor of it is used, and
    rows of queries and keys, which llama.cpp keeps for rotary pairs (2i, 2i + 1), are in the
    order of pairs (i, i + head_dim / 2) again.

    Args:
      file: a Llama, in any storage that the package gguf dequantises.
      dtype: of the parameters, and of what is computed.

    Raises:
      FileNotFoundError: no such file.
      ValueError: a damaged file, another architecture, a key that changes what is computed in a
        way that is not known here (scaled positions, experts), sizes that make no sense, a
        tensor that is missing, of another shape, not known, or not finite; names the file and
        the key or tensor. All but the last before any number is read.
    """
    return _model(pathlib.Path(file), read_header(file), dtype)


def sizes_of(header: Header, file: str | pathlib.Path) -> LlamaSizes:
    """The sizes that the metadata states.

    Raises:
      ValueError: see `load`.
    """
    metadata, tensors = header
    name = metadata.get("general.architecture")
    if name != "llama":
        raise ValueError(
            f"{file}: general.architecture = {shorten(name)}; only 'llama' can be loaded"
        )
    read = _Metadata(metadata, file)
    read.refuse_others()
    depth = read.whole(_DEPTH, _MOST_LAYERS)
    width, heads = read.whole(_WIDTH), read.each(_HEADS, depth)
    key_heads = read.each(_KEY_HEADS, depth) if read.has(_KEY_HEADS) else heads
    if not read.has(_HEAD_DIM) and width % heads[0]:
        raise ValueError(
            f"{file}: {read.prefix}{_HEADS} = {heads[0]} does not divide {_WIDTH} = {width}"
        )
    head_dim = read.whole(_HEAD_DIM) if read.has(_HEAD_DIM) else width // heads[0]
    for key in ("rope.dimension_count", "attention.value_length"):
        if read.has(key) and read.whole(key) != head_dim:
            raise ValueError(
                f"{file}: {read.prefix}{key} = {read.whole(key)}; only {head_dim}, the size of a "
                "head, can be loaded"
            )
    if head_dim % 2:
        raise ValueError(f"{file}: heads of {head_dim} have no pairs to turn; even ones have")
    for layer, (query, key) in enumerate(zip(heads, key_heads, strict=True)):
        if query % key:
            raise ValueError(
                f"{file}: layer {layer} has {query} heads, no multiple of {key}, which is its "
                f"{read.prefix}{_KEY_HEADS}"
            )
    if "token_embd.weight" not in tensors:
        raise ValueError(
            f"{file} has no tensor 'token_embd.weight'{near_misses('token_embd.weight', tensors)}"
        )
    vocabulary = tensors["token_embd.weight"].shape[0]
    if read.has("vocab_size") and read.whole("vocab_size") != vocabulary:
        raise ValueError(
            f"{file}: 'token_embd.weight' has {vocabulary} rows; by {read.prefix}vocab_size it "
            f"would have {read.whole('vocab_size')}"
        )
    return LlamaSizes(
        width,
        head_dim,
        heads,
        read.each(_HIDDEN, depth),
        read.positive(_EPSILON),
        "silu",
        vocabulary=vocabulary,
        longest=read.whole(_LONGEST),
        key_heads=key_heads,
        theta=read.positive(_THETA) if read.has(_THETA) else 1e4,
        tied=_HEAD not in tensors,
        attention_bias="blk.0.attn_q.bias" in tensors,
        mlp_bias="blk.0.ffn_down.bias" in tensors,
    )


class _Metadata:
    """Values of an architecture's keys; errors name file and key."""

    def __init__(self, metadata: dict[str, Any], file: str | pathlib.Path):
        self.metadata, self.file, self.prefix = metadata, file, "llama."

    def has(self, key: str) -> bool:
        return self.prefix + key in self.metadata

    def refuse_others(self) -> None:
        for name, value in self.metadata.items():
            key = name.removeprefix(self.prefix)
            if key == name or key in _SIZES:
                continue
            if key not in _ONLY or value != _ONLY[key]:
                known = f"only {_ONLY[key]!r}" if key in _ONLY else "no such key"
                raise ValueError(f"{self.file}: {name} = {shorten(value)}; {known} can be loaded")

    def __call__(self, key: str) -> Any:
        name = self.prefix + key
        if name not in self.metadata:
            raise ValueError(f"{self.file} has no key {name!r}{near_misses(name, self.metadata)}")
        return self.metadata[name]

    def whole(self, key: str, most: int = _MOST) -> int:
        return self._whole(key, self(key), most)

    def each(self, key: str, depth: int) -> tuple[int, ...]:
        """A number for every layer, where the file has one for all, too."""
        value = self(key)
        if not isinstance(value, list):
            return (self._whole(key, value, _MOST),) * depth
        if len(value) != depth:
            raise ValueError(
                f"{self.file}: {self.prefix}{key} = {shorten(value)} has {len(value)} numbers, "
                f"for {depth} layers"
            )
        return tuple(self._whole(key, each, _MOST) for each in value)

    def positive(self, key: str) -> float:
        value = self(key)
        if type(value) is not float or not 0 < value < math.inf:
            raise ValueError(
                f"{self.file}: {self.prefix}{key} = {shorten(value)} must be a number above 0, and "
                "finite"
            )
        return value

    def _whole(self, key: str, value: Any, most: int) -> int:
        if type(value) is not int or not 1 <= value <= most:
            raise ValueError(
                f"{self.file}: {self.prefix}{key} = {shorten(value)} must be from 1 to {most}"
            )
        return value


def _model(file: pathlib.Path, header: Header, dtype: Any) -> Llama:
    sizes = sizes_of(header, file)
    empty = nnx.eval_shape(lambda: Llama(sizes, rngs=nnx.Rngs(0)))
    names = {path: _name_of(path) for path, _ in nnx.to_flat_state(nnx.state(empty))}
    if unknown := sorted(set(header.tensors) - set(names.values())):
        raise ValueError(
            f"{file}: {unknown[0]!r}, one of {len(unknown)}, is no tensor of a llama that can be "
            f"loaded{near_misses(unknown[0], names.values())}"
        )
    shapes = {name: entry.shape for name, entry in header.tensors.items()}
    _check_storages(file, header)
    heads = {}
    for layer, counts in enumerate(zip(sizes.heads, sizes.key_heads, strict=True)):
        for part, count in zip("qk", counts, strict=True):
            for suffix in ("weight", "bias"):
                heads[f"blk.{layer}.attn_{part}.{suffix}"] = count

    def read(name: str) -> np.ndarray:
        array = _numbers(file, name, header.tensors[name])
        return _pairs_apart(array, heads[name]) if name in heads else array

    return fill(empty, names, shapes, read, file, by="its metadata", dtype=dtype)


def _name_of(path: tuple[Any, ...]) -> str:
    """The tensor of a parameter: ("layers", 0, "attention", "query", "kernel") and so on."""
    numbers = [part for part in path if isinstance(part, int)]
    module = "/".join("{}" if isinstance(part, int) else part for part in path[:-1])
    return f"{TENSORS[module].format(*numbers)}.{'bias' if path[-1] == 'bias' else 'weight'}"


def _check_storages(file: pathlib.Path, header: Header) -> None:
    """Raises ValueError for tensors in a storage that cannot be read, before any is."""
    gguf = package()
    for name, entry in header.tensors.items():
        kind = gguf.GGMLQuantizationType(entry.kind)
        block = np.zeros((1, gguf.GGML_QUANT_SIZES[kind][1]), np.uint8)
        try:
            gguf.quants.dequantize(block, kind)
        except NotImplementedError:
            raise ValueError(
                f"{file}: tensor {name!r} is stored as {kind.name}, which the package gguf does "
                "not dequantise; Q8_0 and F16 are among those that it does"
            ) from None


def _numbers(file: pathlib.Path, name: str, entry: Entry) -> np.ndarray:
    gguf = package()
    kind = gguf.GGMLQuantizationType(entry.kind)
    stored = gguf.quants.quant_shape_to_byte_shape(entry.shape, kind)
    data = np.fromfile(file, np.uint8, entry.end - entry.begin, offset=entry.begin)
    if data.size != entry.end - entry.begin:
        raise ValueError(f"{file}: tensor {name!r}: the file ends within it")
    array = gguf.quants.dequantize(data.reshape(stored), kind)
    if not np.isfinite(array).all():
        raise ValueError(f"{file}: tensor {name!r} has numbers that are not finite: it is damaged")
    return array


def _pairs_apart(array: np.ndarray, heads: int) -> np.ndarray:
    """Rows of each head from pairs (2i, 2i + 1) to pairs (i, i + head_dim / 2)."""
    paired = array.reshape(heads, -1, 2, *array.shape[1:])
    return paired.swapaxes(1, 2).reshape(array.shape)
