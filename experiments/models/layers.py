"""Layers of a transformer encoder: attention, a feed-forward part, and their norms."""

from collections.abc import Iterable
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.core import Tracer

from experiments.models.sizes import ACTIVATIONS, Sizes


class Attention(nnx.Module):
    """Multi-head self-attention: softmax(q k^T / sqrt(head_dim) + bias) v, per head.

    Args:
      width: size of a token's vector.
      heads: number of heads.
      head_dim: size of a head.
      qkv_bias: whether query, key and value have biases.
      rngs: random streams for the initial weights.
    """

    def __init__(
        self, width: int, heads: int, head_dim: int, *, qkv_bias: bool = True, rngs: nnx.Rngs
    ):
        self.head_dim = head_dim
        self.query = nnx.Linear(width, heads * head_dim, use_bias=qkv_bias, rngs=rngs)
        self.key = nnx.Linear(width, heads * head_dim, use_bias=qkv_bias, rngs=rngs)
        self.value = nnx.Linear(width, heads * head_dim, use_bias=qkv_bias, rngs=rngs)
        self.output = nnx.Linear(heads * head_dim, width, rngs=rngs)

    def __call__(self, x: jax.Array, bias: jax.Array | None) -> jax.Array:
        """(batch, length, width) to the same; `bias` (batch, 1, 1, length) is added to scores."""
        q, k, v = self.query(x), self.key(x), self.value(x)
        # What shrinking leaves of attention that is empty is one head, narrower than head_dim.
        heads = max(1, q.shape[-1] // self.head_dim)
        # Heads before tokens: products of matrices, which ONNX Runtime has faster than einsum.
        q, k, v = (self._by_head(part, heads) for part in (q, k, v))
        scores = (q * self.head_dim**-0.5) @ k.swapaxes(-1, -2)
        if bias is not None:
            scores = scores + bias
        mixed = (jax.nn.softmax(scores, axis=-1) @ v).swapaxes(-2, -3)
        return self.output(mixed.reshape(*mixed.shape[:-2], -1))

    @staticmethod
    def _by_head(x: jax.Array, heads: int) -> jax.Array:
        return x.reshape(*x.shape[:-1], heads, -1).swapaxes(-2, -3)


class Layer(nnx.Module):
    """Attention and a feed-forward part, each with a residual and a layer norm.

    Post-normalisation (BERT) is x = norm(x + part(x)), pre-normalisation (ViT) is
    x = x + part(norm(x)).

    Args:
      sizes: of the encoder.
      index: which of its layers this is.
      pre_norm: where the norms are.
      qkv_bias: whether query, key and value have biases.
      rngs: random streams for the initial weights.
    """

    def __init__(
        self, sizes: Sizes, index: int, *, pre_norm: bool, qkv_bias: bool = True, rngs: nnx.Rngs
    ):
        width, hidden = sizes.width, sizes.hidden[index]
        self.pre_norm = pre_norm
        self.activation = ACTIVATIONS[sizes.activation]
        self.attention = Attention(
            width, sizes.heads[index], sizes.head_dim, qkv_bias=qkv_bias, rngs=rngs
        )
        self.attention_norm = norm(sizes, rngs)
        self.intermediate = nnx.Linear(width, hidden, rngs=rngs)
        self.output = nnx.Linear(hidden, width, rngs=rngs)
        self.output_norm = norm(sizes, rngs)

    def __call__(self, x: jax.Array, bias: jax.Array | None) -> jax.Array:
        """(batch, length, width) to the same."""
        if self.pre_norm:
            x = x + self.attention(self.attention_norm(x), bias)
            return x + self._feed_forward(self.output_norm(x))
        x = self.attention_norm(x + self.attention(x, bias))
        return self.output_norm(x + self._feed_forward(x))

    def _feed_forward(self, x: jax.Array) -> jax.Array:
        return self.output(self.activation(self.intermediate(x)))


def run(layers: Iterable[Layer], x: jax.Array, bias: jax.Array | None) -> Any:
    """What comes out of the last layer, and the tuple of what goes into each and comes out."""
    hidden = [x]
    for layer in layers:
        x = layer(x, bias)
        hidden.append(x)
    return x, tuple(hidden)


def norm(sizes: Sizes, rngs: nnx.Rngs) -> nnx.LayerNorm:
    """A layer norm over a token's vector."""
    # E[(x - mean)^2]: E[x^2] - mean^2 cancels where one channel is much larger than others.
    return nnx.LayerNorm(sizes.width, epsilon=sizes.epsilon, use_fast_variance=False, rngs=rngs)


def check_rows(what: str, rows: Any, table: nnx.Embed) -> None:
    """Raises ValueError for what is no row of a table, unless it is traced."""
    if isinstance(rows, Tracer) or not rows.size:
        return
    values = np.asarray(rows)
    least, most = np.min(values), np.max(values)
    if least < 0 or most >= table.num_embeddings:
        raise ValueError(
            f"{what} from {least} to {most}; the embeddings have rows 0 to "
            f"{table.num_embeddings - 1}"
        )
