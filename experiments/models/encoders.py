"""Transformer encoders as others train them: of text (BERT and its kin) and images (ViT).

Weights of Hugging Face's directories go into these modules one to one; `experiments.huggingface`
loads and saves them. Everything is in evaluation mode: dropout rates of a config.json are not
used. A module reads how many heads it has off its weights, so that smaller weights run, too.
"""

from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from experiments.models.layers import Layer, check_rows, norm, run
from experiments.models.sizes import ImageSizes, TextSizes

Pool = Literal["mean", "first"]


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
        self.norm = norm(sizes, rngs)
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
          ids: (batch, length) of tokens, at least one. Under `jit` their values are not known:
            what is no row of the embeddings is then not refused, and gives NaN, or, below 0, a
            row counted from the end.
          mask: (batch, length), true or 1 at tokens, false or 0 at padding.
          token_types: (batch, length) of segments, all 0 if None.
          return_hidden: also what goes into the first layer and comes out of every one.

        Returns:
          (batch, length, width), and with `return_hidden` a tuple of as many such arrays as
          there are layers, and one more.

        Raises:
          ValueError: an input longer than there are positions, or empty; a mask or segments of
            another shape, segments of a model without; ids and segments that are no row of
            their embeddings, where values are known.
        """
        if np.ndim(ids) != 2 or not ids.shape[-1]:
            raise ValueError(f"ids of shape {np.shape(ids)} must be (batch, length), length > 0")
        if np.shape(mask) != ids.shape:
            raise ValueError(
                f"a mask of shape {np.shape(mask)} for ids of shape {ids.shape}; both are "
                "(batch, length)"
            )
        if ids.shape[-1] > self.longest:
            raise ValueError(
                f"inputs of shape {ids.shape} have {ids.shape[-1]} tokens each; the position "
                f"embeddings are for {self.longest} at most"
            )
        if token_types is not None and self.token_type is None:
            raise ValueError("this model has no embeddings of token types; None would work")
        check_rows("ids", ids, self.word)
        if token_types is not None and self.token_type is not None:
            if np.shape(token_types) != ids.shape:
                raise ValueError(
                    f"token types of shape {np.shape(token_types)} for ids of shape {ids.shape}; "
                    "both are (batch, length)"
                )
            check_rows("token types", token_types, self.token_type)
        mask = mask.astype(bool)
        x = self.word(ids) + self.position(self._positions(mask))
        if self.token_type is not None:
            x = x + self.token_type(jnp.zeros_like(ids) if token_types is None else token_types)
        bias = jnp.where(mask[:, None, None, :], 0.0, jnp.finfo(x.dtype).min).astype(x.dtype)
        x, hidden = run(self.layers, self.norm(x), bias)
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
        self.norm = norm(sizes, rngs)

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
        x, hidden = run(self.layers, x, None)
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
