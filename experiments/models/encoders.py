"""Transformer encoders as others train them: of text (BERT and its kin) and images (ViT).

Weights of Hugging Face's directories go into these modules one to one; `experiments.huggingface`
loads and saves them. Everything is in evaluation mode: dropout rates of a config.json are not
used. A module reads how many heads it has off its weights, so that smaller weights run, too.
"""

from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from experiments.models.sizes import ACTIVATIONS, ImageSizes, Sizes, TextSizes

Pool = Literal["mean", "first"]


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
        self.attention_norm = _norm(sizes, rngs)
        self.intermediate = nnx.Linear(width, hidden, rngs=rngs)
        self.output = nnx.Linear(hidden, width, rngs=rngs)
        self.output_norm = _norm(sizes, rngs)

    def __call__(self, x: jax.Array, bias: jax.Array | None) -> jax.Array:
        """(batch, length, width) to the same."""
        if self.pre_norm:
            x = x + self.attention(self.attention_norm(x), bias)
            return x + self._feed_forward(self.output_norm(x))
        x = self.attention_norm(x + self.attention(x, bias))
        return self.output_norm(x + self._feed_forward(x))

    def _feed_forward(self, x: jax.Array) -> jax.Array:
        return self.output(self.activation(self.intermediate(x)))


class TextEncoder(nnx.Module):
    """BERT (Devlin et al., 2019), RoBERTa and DistilBERT: embeddings, then `layers`.

    Args:
      sizes: of everything in it.
      rngs: random streams for the initial weights.

    Example:
      >>> sizes = TextSizes(8, 4, (2,), (16,), 1e-12, "gelu", 30, 12, 2, None)
      >>> model = TextEncoder(sizes, rngs=nnx.Rngs(0))
      >>> model(jnp.ones((3, 5), int), jnp.ones((3, 5), bool)).shape
      (3, 5, 8)
    """

    def __init__(self, sizes: TextSizes, *, rngs: nnx.Rngs):
        self.longest, self.padding = sizes.longest, sizes.padding
        self.word = nnx.Embed(sizes.vocabulary, sizes.width, rngs=rngs)
        self.position = nnx.Embed(sizes.positions, sizes.width, rngs=rngs)
        types = sizes.token_types
        self.token_type = nnx.Embed(types, sizes.width, rngs=rngs) if types else None
        self.norm = _norm(sizes, rngs)
        self.layers = nnx.List(
            [Layer(sizes, i, pre_norm=False, rngs=rngs) for i in range(len(sizes.heads))]
        )

    def __call__(
        self,
        ids: jax.Array,
        mask: jax.Array,
        token_types: jax.Array | None = None,
        *,
        return_hidden: bool = False,
    ) -> Any:
        """The last hidden state of every token.

        Args:
          ids: (batch, length) of tokens.
          mask: (batch, length), true or 1 at tokens, false or 0 at padding.
          token_types: (batch, length) of segments, all 0 if None.
          return_hidden: also what goes into the first layer and comes out of every one.

        Returns:
          (batch, length, width), and with `return_hidden` a tuple of as many such arrays as
          there are layers, and one more.

        Raises:
          ValueError: an input longer than there are positions, segments of a model without.
        """
        if ids.shape[-1] > self.longest:
            raise ValueError(
                f"inputs of shape {ids.shape} have {ids.shape[-1]} tokens each; the position "
                f"embeddings are for {self.longest} at most"
            )
        if token_types is not None and self.token_type is None:
            raise ValueError("this model has no embeddings of token types; None would work")
        mask = mask.astype(bool)
        x = self.word(ids) + self.position(self._positions(mask))
        if self.token_type is not None:
            x = x + self.token_type(jnp.zeros_like(ids) if token_types is None else token_types)
        bias = jnp.where(mask[:, None, None, :], 0.0, jnp.finfo(x.dtype).min).astype(x.dtype)
        x, hidden = _run(self.layers, self.norm(x), bias)
        return (x, hidden) if return_hidden else x

    def _positions(self, mask: jax.Array) -> jax.Array:
        # A look-up also where a slice would do: rows of a slice are channels to the graph,
        # and shrinking would remove those that a shorter example does not reach.
        if self.padding is None:
            return jnp.arange(mask.shape[-1])
        return jnp.cumsum(mask, axis=-1) * mask + self.padding


class ImageEncoder(nnx.Module):
    """ViT (Dosovitskiy et al., 2021): patches and a class token, `layers`, a norm.

    Args:
      sizes: of everything in it.
      rngs: random streams for the initial weights.
    """

    def __init__(self, sizes: ImageSizes, *, rngs: nnx.Rngs):
        side, width = sizes.patch, sizes.width
        self.expected = (sizes.image, sizes.image, sizes.channels)
        self.patch = nnx.Conv(
            sizes.channels, width, (side, side), (side, side), padding="VALID", rngs=rngs
        )
        self.class_token = nnx.Param(jnp.zeros((1, 1, width)))
        self.position = nnx.Param(jnp.zeros((1, 1 + (sizes.image // side) ** 2, width)))
        self.layers = nnx.List(
            [
                Layer(sizes, i, pre_norm=True, qkv_bias=sizes.qkv_bias, rngs=rngs)
                for i in range(len(sizes.heads))
            ]
        )
        self.norm = _norm(sizes, rngs)

    def __call__(self, images: jax.Array, *, return_hidden: bool = False) -> Any:
        """The last hidden state of the class token, and then of every patch.

        Args:
          images: (batch, image, image, channels).
          return_hidden: as for `TextEncoder`; the last of them is not normalised.

        Returns:
          (batch, 1 + patches, width), and with `return_hidden` a tuple of such arrays.

        Raises:
          ValueError: images of another size.
        """
        if images.shape[1:] != self.expected:
            raise ValueError(
                f"images of shape {images.shape}; the model takes (batch, height, width, "
                f"channels) = (batch, {', '.join(map(str, self.expected))})"
            )
        x = self.patch(images)
        x = x.reshape(x.shape[0], -1, x.shape[-1])
        first = jnp.broadcast_to(self.class_token[...], (x.shape[0], 1, x.shape[-1]))
        x = jnp.concatenate([first, x], axis=1) + self.position[...]
        x, hidden = _run(self.layers, x, None)
        x = self.norm(x)
        return (x, hidden) if return_hidden else x


class Classifier(nnx.Module):
    """An encoder and a linear head on its pooled output.

    Args:
      encoder: of text or images.
      outputs: numbers per example.
      pool: "mean" over tokens that are no padding, or "first", the class token's.
      rngs: random streams for the head's initial weights.
    """

    def __init__(
        self,
        encoder: TextEncoder | ImageEncoder,
        outputs: int,
        *,
        pool: Pool = "mean",
        rngs: nnx.Rngs,
    ):
        self.encoder = encoder
        self.pool: Pool = pool
        small = nnx.initializers.normal(0.02)
        self.head = nnx.Linear(encoder.norm.num_features, outputs, kernel_init=small, rngs=rngs)

    def __call__(
        self,
        inputs: jax.Array,
        mask: jax.Array | None = None,
        token_types: jax.Array | None = None,
        *,
        return_hidden: bool = False,
    ) -> Any:
        """The logits, (batch, outputs).

        Args:
          inputs: ids of tokens, or images.
          mask, token_types: of text, as for `TextEncoder`; of images both are None.
          return_hidden: also the encoder's tuple of hidden states.

        Raises:
          ValueError: text without a mask, or images with one, and as the encoder does.
        """
        if isinstance(self.encoder, TextEncoder):
            if mask is None:
                raise ValueError("a classifier of text takes ids and a mask; mask is None")
            x, hidden = self.encoder(inputs, mask, token_types, return_hidden=True)
        elif mask is None and token_types is None:
            x, hidden = self.encoder(inputs, return_hidden=True)
        else:
            raise ValueError("a classifier of images takes no mask and no token types")
        if self.pool == "first":
            x = x[:, 0]
        elif mask is not None:
            real = mask.astype(x.dtype)
            weights = real / jnp.maximum(real.sum(axis=1, keepdims=True), 1)
            x = jnp.einsum("nl,nlw->nw", weights, x)
        else:
            x = x.mean(axis=1)
        logits = self.head(x)
        return (logits, hidden) if return_hidden else logits


def _run(layers, x, bias):
    hidden = [x]
    for layer in layers:
        x = layer(x, bias)
        hidden.append(x)
    return x, tuple(hidden)


def _norm(sizes: Sizes, rngs: nnx.Rngs) -> nnx.LayerNorm:
    # E[(x - mean)^2]: E[x^2] - mean^2 cancels where one channel is much larger than others.
    return nnx.LayerNorm(sizes.width, epsilon=sizes.epsilon, use_fast_variance=False, rngs=rngs)
