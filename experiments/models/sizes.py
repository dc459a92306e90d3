"""What transformers are made of: sizes and activations, as a config.json states them."""

import dataclasses
from collections.abc import Callable

import jax


def _gelu_tanh(x: jax.Array) -> jax.Array:
    return jax.nn.gelu(x, approximate=True)


# By the names that config.json has for them.
ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_new": _gelu_tanh,
    "gelu_pytorch_tanh": _gelu_tanh,
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
}


@dataclasses.dataclass(frozen=True)
class Sizes:
    """What the layers of a transformer are made of.

    Attributes:
      width: size of a token's vector.
      head_dim: size of one head; attention is scaled by its inverse square root.
      heads: heads of every layer; those of a shrunk model differ.
      hidden: neurons of every layer's feed-forward part.
      epsilon: of the norms.
      activation: a key of `ACTIVATIONS`.
    """

    width: int
    head_dim: int
    heads: tuple[int, ...]
    hidden: tuple[int, ...]
    epsilon: float
    activation: str


@dataclasses.dataclass(frozen=True)
class TextSizes(Sizes):
    """`Sizes`, and those of the embeddings.

    Attributes:
      vocabulary: number of token ids.
      positions: rows of the position embeddings.
      token_types: kinds of segments, 0 for a model that knows none.
      padding: in models that count positions of real tokens from behind it (RoBERTa), the
        id of padding; None where row i is position i.
    """

    vocabulary: int
    positions: int
    token_types: int
    padding: int | None

    @property
    def longest(self) -> int:
        """The longest input, in tokens."""
        return self.positions - (0 if self.padding is None else self.padding + 1)


@dataclasses.dataclass(frozen=True)
class ImageSizes(Sizes):
    """`Sizes`, and those of the images: square, cut into square patches.

    Attributes:
      image: pixels of a side.
      patch: pixels of a patch's side; divides `image`.
      channels: numbers per pixel.
      qkv_bias: whether query, key and value have biases.
    """

    image: int
    patch: int
    channels: int
    qkv_bias: bool


@dataclasses.dataclass(frozen=True)
class LlamaSizes(Sizes):
    """`Sizes`, and those of a decoder; `heads` are of queries.

    Attributes:
      vocabulary: number of token ids.
      longest: the longest text in tokens, generated ones among them.
      key_heads: heads of keys and values of every layer; as many queries belong to each.
      theta: base of the wavelengths of rotary positions.
      tied: whether the embeddings are the head as well.
      attention_bias: whether the four products of attention have biases.
      mlp_bias: whether those of the feed-forward part have.
    """

    vocabulary: int
    longest: int
    key_heads: tuple[int, ...]
    theta: float
    tied: bool
    attention_bias: bool = False
    mlp_bias: bool = False
