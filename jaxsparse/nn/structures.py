"""Where a layer that starts packed has its weights: random places, fixed for good."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from jaxsparse.arrays import CSC, Bitmap, BlockSparse, NMSparse
from jaxsparse.kernels.layouts import BitmapLayout, NMLayout
from jaxsparse.nm import NM
from jaxsparse.packed import Packed
from jaxsparse.packing import SHORT_ROWS, bitmap_pays
from jaxsparse.patterns import Block, Pattern, Unstructured
from jaxsparse.views import View


def random_structure(
    key: PRNGKeyArray, shape: tuple[int, int], pattern: Pattern, sparsity: float | None = None
) -> Packed:
    """A packed weight without values, its places drawn uniformly.

    Args:
      key: for the places.
      shape: (K, N).
      pattern: `Block`, `NM` or `Unstructured`.
      sparsity: fraction of the groups to leave out; n - round(s n) stay. For
        `NM`, None.

    Returns:
      The structure, for `Packed.with_values`. May run under `jit`: its sizes
      depend on the arguments, not on the key.

    Raises:
      TypeError: for another pattern.
      ValueError: for a sparsity outside [0, 1), or one that is missing.
    """
    view = View(tuple(shape), (), (0,), (1,))
    if isinstance(pattern, NM):
        if sparsity is not None and not math.isclose(sparsity, pattern.max_sparsity):
            raise ValueError(f"{pattern} has its own sparsity, not {sparsity}.")
        return _groups(key, view, pattern.n, pattern.m)
    if not isinstance(pattern, Block | Unstructured):
        raise TypeError(f"{pattern!r} is not a pattern that a layer can start with.")
    if sparsity is None or not 0 <= sparsity < 1:
        raise ValueError(f"sparsity={sparsity} of {pattern} must lie in [0, 1).")
    block = (pattern.rows, pattern.columns) if isinstance(pattern, Block) else (1, 1)
    down, across = (-(-size // side) for size, side in zip(shape, block, strict=True))
    kept = down * across - round(sparsity * down * across)
    drawn = jax.random.permutation(key, down * across)[:kept]
    if isinstance(pattern, Unstructured) and bitmap_pays(kept, shape):
        mask = jnp.zeros(down * across, bool).at[drawn].set(True).reshape(shape)
        starts, bits = BitmapLayout(view.matrix_shape, kept).encode(mask)
        return Bitmap(None, starts, bits, kept, view)
    places = jnp.sort(drawn).astype(jnp.int32)
    starts = jnp.arange(across + 1, dtype=jnp.int32) * down
    indptr = jnp.searchsorted(places, starts).astype(jnp.int32)
    rows = places % down
    if isinstance(pattern, Block):
        return BlockSparse(None, indptr, rows, block, view)
    return CSC(None, indptr, rows.astype(jnp.uint16) if shape[0] <= SHORT_ROWS else rows, view)


def _groups(key, view, n, m):
    k, width = view.matrix_shape
    layout = NMLayout((k, width), n, m)
    drawn = jax.random.uniform(key, (layout.padded[0] // m, m, width))
    inside = jnp.arange(layout.padded[0]).reshape(-1, m, 1) < k
    chosen = jnp.argsort(jnp.where(inside, drawn, 2.0), axis=1)[:, :n]
    found = jnp.sort(chosen, axis=1).reshape(layout.values_shape)
    return NMSparse(None, layout.encode(found), n, m, view)


def normal_values(key: PRNGKeyArray, structure: Packed, dtype=jnp.float32) -> Float[Array, "..."]:
    """Values with variance 1 / (inputs that an output keeps), as LeCun's for a dense layer."""
    layout = structure.layout
    fan_in = max(1.0, layout.stored / layout.padded[1])
    return jax.random.normal(key, layout.values_shape, dtype) / math.sqrt(fan_in)
