"""From a dense grid to a sparse tensor and back."""

from collections.abc import Sequence

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxsparse.activations.bounds import NOWHERE, Bounds
from jaxsparse.activations.faults import poison
from jaxsparse.activations.sites import distinct_sites, require_room
from jaxsparse.activations.tensor import SparseTensor, flagged


def to_dense(x: SparseTensor) -> Float[Array, "batch *shape channels"]:
    """The grid that spans the bounds, zero where no site is.

    Place i along an axis is the coordinate `bounds.lower` + i.

    Args:
      x: the tensor; of one where something was lost under `jit`, NaN.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxsparse import activations as act
      >>> x = act.sparse_tensor(jnp.array([[0, 2], [0, 4]]), jnp.array([[1.0], [2.0]]))
      >>> act.to_dense(x)[0, :, 0]
      Array([1., 0., 2.], dtype=float32)
    """
    bounds, where = x.bounds, x.sites
    flat = jnp.zeros((bounds.places, x.channels), x.features.dtype)
    flat = flat.at[where.keys].set(x.features[where.order], mode="drop")
    return poison(flat.reshape(bounds.batch, *bounds.shape, x.channels), where.ok)


def from_dense(
    grid: Float[Array, "batch *shape channels"],
    capacity: int,
    *,
    active: Bool[Array, "batch *shape"] | None = None,
    lower: Sequence[int] | None = None,
) -> SparseTensor:
    """The sites of a grid that hold something, in row-major order.

    Args:
      grid: features, channels last.
      capacity: rows to make room for.
      active: where sites are; None for where any channel is not zero.
      lower: the coordinate of the first place of each axis, None for 0.

    Raises:
      ValueError: another shape of `active`, more sites than fit (flagged under `jit`).

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxsparse import activations as act
      >>> act.from_dense(jnp.array([[[0.0], [7.0]]]), capacity=2).coordinates
      Array([[ 0,  1],
             [-1, -1]], dtype=int32)
    """
    if grid.ndim < 3:
        raise ValueError(f"a grid of shape {grid.shape} needs (batch, *shape, channels).")
    batch, *shape, channels = grid.shape
    lower = (0,) * len(shape) if lower is None else tuple(lower)
    if len(lower) != len(shape):
        raise ValueError(f"lower={lower} needs {len(shape)} numbers, one a spatial axis.")
    bounds = Bounds(batch, lower, tuple(a + n for a, n in zip(lower, shape, strict=True)))
    active = jnp.any(grid != 0, axis=-1) if active is None else active
    if active.shape != grid.shape[:-1]:
        raise ValueError(f"active has shape {active.shape}, needs {grid.shape[:-1]}.")
    keys = jnp.where(active.reshape(-1), jnp.arange(bounds.places, dtype=jnp.int32), NOWHERE)
    where = distinct_sites(keys, bounds, capacity, jnp.bool_(True))
    require_room(where.needed, where.capacity)
    rows = grid.reshape(-1, channels)
    features = jnp.where(where.valid[:, None], jnp.take(rows, where.keys, axis=0, mode="clip"), 0)
    return flagged(features, where, where.ok)
