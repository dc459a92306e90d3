"""A small transformer encoder (Vaswani et al., 2017) with norms before each part."""

import jax.numpy as jnp
import numpy as np
from flax import nnx

from experiments.data import Dataset
from experiments.models.base import MODELS, Model, from_nnx
from experiments.models.mlp import squeeze_one


class Layer(nnx.Module):
    """``x += attention(norm(x)); x += mlp(norm(x))``.

    Args:
      width: size of a token's vector.
      heads: attention heads; divides ``width``.
      mlp_width: hidden size of the MLP.
      dropout: rate on both residual branches.
      rngs: random streams for the initial weights.
    """

    def __init__(self, width: int, heads: int, mlp_width: int, dropout: float, *, rngs: nnx.Rngs):
        self.norm_0 = nnx.LayerNorm(width, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(heads, width, keep_rngs=False, rngs=rngs)
        self.norm_1 = nnx.LayerNorm(width, rngs=rngs)
        self.mlp_in = nnx.Linear(width, mlp_width, rngs=rngs)
        self.mlp_out = nnx.Linear(mlp_width, width, rngs=rngs)
        self.dropout = nnx.Dropout(dropout)

    def __call__(self, x, mask, *, rngs: nnx.Rngs | None):
        def drop(y):
            return self.dropout(y, deterministic=rngs is None, rngs=rngs)

        x = x + drop(self.attention(self.norm_0(x), mask=mask, deterministic=True, decode=False))
        return x + drop(self.mlp_out(nnx.gelu(self.mlp_in(self.norm_1(x)))))


class Transformer(nnx.Module):
    """Token and position embeddings, ``layers_i``, the mean over real tokens, a head.

    Token 0 is padding: nothing attends to it and the mean leaves it out.

    Args:
      tokens: vocabulary size.
      length: longest input.
      depth: number of layers.
      width: size of a token's vector.
      heads: attention heads; divides ``width``.
      mlp_width: hidden size of the layers' MLPs.
      dropout: rate.
      outputs: size of the head.
      rngs: random streams for the initial weights.
    """

    def __init__(
        self, tokens, length, depth, width, heads, mlp_width, dropout, outputs, *, rngs: nnx.Rngs
    ):
        small = nnx.initializers.normal(0.02)
        self.tokens = nnx.Embed(tokens, width, embedding_init=small, rngs=rngs)
        self.positions = nnx.Embed(length, width, embedding_init=small, rngs=rngs)
        self.dropout = nnx.Dropout(dropout)
        self.depth = depth
        for index in range(depth):
            setattr(self, f"layers_{index}", Layer(width, heads, mlp_width, dropout, rngs=rngs))
        self.norm = nnx.LayerNorm(width, rngs=rngs)
        self.head = nnx.Linear(width, outputs, rngs=rngs)

    def __call__(self, inputs, *, rngs: nnx.Rngs | None = None):
        real = inputs > 0
        x = self.tokens(inputs) + self.positions(jnp.arange(inputs.shape[1]))
        x = self.dropout(x, deterministic=rngs is None, rngs=rngs)
        for index in range(self.depth):
            x = getattr(self, f"layers_{index}")(x, real[:, None, None, :], rngs=rngs)
        weights = real / jnp.maximum(real.sum(axis=1, keepdims=True), 1)
        return squeeze_one(self.head(jnp.einsum("nl,nlw->nw", weights, self.norm(x))))


@MODELS.register("transformer")
def transformer(
    dataset: Dataset,
    depth: int = 2,
    width: int = 64,
    heads: int = 4,
    mlp_width: int = 256,
    dropout: float = 0.1,
) -> Model:
    """An encoder on token ids (n, length), 0 meaning padding.

    Args:
      dataset: gives the vocabulary, the length and the outputs.
      depth: number of layers.
      width: size of a token's vector.
      heads: attention heads.
      mlp_width: hidden size of the layers' MLPs.
      dropout: rate.

    Raises:
      ValueError: inputs that are not token ids, or heads that do not divide the width.
    """
    inputs = dataset.train.inputs
    if "tokens" not in dataset.sizes or not isinstance(inputs, np.ndarray) or inputs.ndim != 2:
        raise ValueError("a transformer reads token ids of shape (n, length); see the reviews")
    if width % heads:
        raise ValueError(f"model.heads: {heads} heads do not divide the width {width}")
    shape = (dataset.sizes["tokens"], inputs.shape[1], depth, width, heads, mlp_width, dropout)
    return from_nnx(lambda rngs: Transformer(*shape, dataset.outputs, rngs=rngs))
