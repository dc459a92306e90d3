"""DLRM (Naumov et al., 2019): embeddings and dense features, pairwise dot products, an MLP."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from flax import nnx

from experiments.data import Dataset
from experiments.models.base import MODELS, Model, from_nnx
from experiments.models.mlp import MLP


class DLRM(nnx.Module):
    """``top([bottom(dense), dot products of all pairs of vectors])``.

    The vectors are the bottom MLP's output, one embedding per id column, and where there
    are genres the sum of the embeddings of a film's.

    Args:
      sizes: vocabulary size of each id column.
      genres: size of the multi-hot column; 0 where there is none.
      dense: number of dense features.
      width: size of every vector.
      bottom: hidden widths of the bottom MLP.
      top: hidden widths of the top MLP.
      dropout: rate on the top MLP's input.
      rngs: random streams for the initial weights.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        genres: int,
        dense: int,
        width: int,
        bottom: Sequence[int],
        top: Sequence[int],
        dropout: float,
        *,
        rngs: nnx.Rngs,
    ):
        self.offsets = tuple(int(offset) for offset in np.cumsum([0, *sizes[:-1]]))
        small = nnx.initializers.normal(0.05)
        # One table for all columns: one gather, and one leaf for a rule to match.
        self.ids = nnx.Embed(sum(sizes), width, embedding_init=small, rngs=rngs)
        options = {"use_bias": False, "kernel_init": small, "rngs": rngs}
        self.genres = nnx.Linear(genres, width, **options) if genres else None
        self.bottom = MLP((dense, *bottom, width), rngs=rngs)
        vectors = len(sizes) + 1 + bool(genres)
        self.dropout = nnx.Dropout(dropout)
        self.top = MLP((width + vectors * (vectors - 1) // 2, *top, 1), rngs=rngs)

    def __call__(self, inputs, *, rngs: nnx.Rngs | None = None):
        dense = nnx.relu(self.bottom(inputs["dense"]))
        embedded = self.ids(inputs["ids"] + jnp.array(self.offsets))
        summed = [] if self.genres is None else [self.genres(inputs["genres"])[:, None]]
        vectors = jnp.concatenate([dense[:, None], *summed, embedded], axis=1)
        products = jnp.einsum("niw,njw->nij", vectors, vectors)
        row, column = np.tril_indices(vectors.shape[1], k=-1)
        x = jnp.concatenate([dense, products[:, row, column]], axis=1)
        return self.top(self.dropout(x, deterministic=rngs is None, rngs=rngs))


@MODELS.register("dlrm")
def dlrm(
    dataset: Dataset,
    width: int = 32,
    bottom: Sequence[int] = (64,),
    top: Sequence[int] = (256, 128),
    dropout: float = 0.0,
) -> Model:
    """DLRM on inputs ``ids``, ``genres`` and ``dense``.

    Args:
      dataset: gives the vocabulary sizes and the number of dense features.
      width: size of every vector.
      bottom: hidden widths of the bottom MLP.
      top: hidden widths of the top MLP.
      dropout: rate on the top MLP's input.

    Raises:
      ValueError: a data set without these inputs.
    """
    inputs = dataset.train.inputs
    if not isinstance(inputs, dict) or set(inputs) != {"ids", "genres", "dense"}:
        raise ValueError("DLRM reads the inputs ids, genres and dense; see the data set movielens")
    shape = (dataset.sizes["ids"], dataset.sizes["genres"], inputs["dense"].shape[1])
    return from_nnx(lambda rngs: DLRM(*shape, width, bottom, top, dropout, rngs=rngs))
