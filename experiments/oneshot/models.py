"""Language models by name, with all that a run asks of them."""

import functools
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from flax import nnx

from experiments import huggingface
from experiments.data.corpora import Encode
from experiments.gguf import load_gguf
from experiments.models.generation import generate
from experiments.models.llama import Llama
from experiments.models.sizes import LlamaSizes
from experiments.pretrained import gguf_file
from jaxsparse.calibration import Part

TINY, SMOLLM2 = "tiny", "smollm2"
# Random weights that read bytes: for tests, and to see a run in a minute.
TINY_SIZES = LlamaSizes(
    width=64,
    head_dim=16,
    heads=(4, 4),
    hidden=(128, 128),
    epsilon=1e-5,
    activation="silu",
    vocabulary=256,
    longest=512,
    key_heads=(2, 2),
    theta=1e4,
    tied=True,
)


class LanguageModel(NamedTuple):
    """A decoder and its tokenizer.

    Attributes:
      graph, params: of the module, as `nnx.split` gives them.
      encode: text -> token ids.
      decode: token ids -> text.
      longest: tokens of a text at most.
      source: one line on where it came from.
    """

    graph: Any
    params: Any
    encode: Encode
    decode: Callable[[Any], str]
    longest: int
    source: str

    def apply(self, params: Any, tokens: jax.Array) -> jax.Array:
        """Logits (batch, length, vocabulary)."""
        return nnx.merge(self.graph, params)(tokens)

    def parts(self) -> list[Part]:
        """Attention and feed-forward part of every block, each with its norm: for `fit_parts`."""
        return [
            Part(functools.partial(run, self.graph, index), rf"layers/{index}/{name}(_norm)?/.*")
            for index in range(len(nnx.merge(self.graph, self.params).layers))
            for run, name in ((_attended, "attention"), (_fed, "feed_forward"))
        ]

    def write(self, params: Any, tokens: jax.Array, new: int) -> jax.Array:
        """The `new` likeliest tokens (batch, new) after each row."""
        return generate(nnx.merge(self.graph, params), tokens, new)


def _attended(graph: Any, index: int, params: Any, x: jax.Array) -> jax.Array:
    model = nnx.merge(graph, params)
    x = model.embedded(x) if not index else x  # tokens
    return model.layers[index].attended(x, model.places(x.shape[1]), None)[0]


def _fed(graph: Any, index: int, params: Any, x: jax.Array) -> jax.Array:
    return nnx.merge(graph, params).layers[index].fed(x)


def check_name(name: str) -> None:
    """Raises ValueError for a model that there cannot be."""
    if name not in (TINY, SMOLLM2) and not pathlib.Path(name).expanduser().exists():
        raise ValueError(
            f"config.model is {name!r}; {SMOLLM2}, {TINY}, a GGUF file or a directory of Hugging "
            "Face would work"
        )


def load(name: str) -> LanguageModel:
    """The model of a name, as `check_name` knows it.

    Raises:
      DownloadError: it could not be fetched.
      FileNotFoundError: a directory lacks a file.
      ValueError: a file that is damaged, or none of a Llama.
    """
    if name == TINY:
        return _tiny()
    path = gguf_file(name)
    if path.is_dir():
        tokenizer = huggingface.read_tokenizer(path)  # says, too, that this is a decoder
        model = huggingface.load(path)
        assert isinstance(model, Llama)
    else:
        model, tokenizer = load_gguf(path)
    graph, params = nnx.split(model)
    return LanguageModel(
        graph, params, tokenizer.encode, tokenizer.decode, model.longest, path.name
    )


def _tiny() -> LanguageModel:
    graph, params = nnx.split(Llama(TINY_SIZES, rngs=nnx.Rngs(0)))
    return LanguageModel(
        graph,
        params,
        lambda text: list(text.encode()),
        lambda ids: bytes(map(int, ids)).decode("utf-8", "replace"),
        TINY_SIZES.longest,
        "random weights, bytes as tokens",
    )
