"""Stored blocks in the order in which kernels walk them: by column, or by row."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from jaxsparse.kernels.layouts import BlockLayout


class Walk(NamedTuple):
    """Blocks grouped by the strip of the output they add to.

    Strip j adds up the blocks `slots[starts[j]:starts[j + 1]]` of the values, and
    `sources` names, in the same order, the strip of the input each multiplies.
    Room to spare belongs to no strip.
    """

    starts: Int[Array, "strips_and_one"]
    sources: Int[Array, "nnz"]
    slots: Int[Array, "nnz"]


def walk(index: Sequence[jax.Array], layout: BlockLayout, transpose: bool) -> Walk:
    """The blocks by column, for x @ W, or by row when `transpose`, for x @ Wᵀ.

    By column is the order in which they are stored. By row, a block's place is found
    by counting: the blocks of the rows above, and on a map of the grid those left of
    it. A count over a comparison is one launch on a GPU, where a cumulative sum takes
    three and a sort more the more keys it has; nothing is stored beside the index,
    which stays an operand.
    """
    indptr, rows = index
    if not transpose:
        return Walk(indptr, rows, jnp.arange(layout.nnz, dtype=jnp.int32))
    down, across = layout.grid
    entries = jnp.arange(layout.nnz, dtype=jnp.int32)
    used = entries < indptr[-1]
    cols = jnp.sum(indptr[1:] <= entries[:, None], axis=1, dtype=jnp.int32)
    above = used & (rows < jnp.arange(down + 1, dtype=jnp.int32)[:, None])
    starts = jnp.sum(above, axis=1, dtype=jnp.int32)
    stored = jnp.zeros((down, across), bool).at[rows, cols].set(True, mode="drop")
    left = stored[rows] & (jnp.arange(across, dtype=jnp.int32) < cols[:, None])
    places = starts[rows] + jnp.sum(left, axis=1, dtype=jnp.int32)
    places = jnp.where(used, places, layout.nnz)

    def spread(entries):
        return jnp.zeros_like(entries).at[places].set(entries, mode="drop", unique_indices=True)

    return Walk(starts, spread(cols), spread(entries))


def pad_rows(x: jax.Array, multiple: int) -> jax.Array:
    """x with zero rows after its own, up to a multiple: a ragged batch as a whole one."""
    missing = -x.shape[0] % multiple
    return jnp.pad(x, ((0, missing), (0, 0))) if missing else x
