"""Pooling of sparse tensors: over windows along a kernel map, and over whole clouds."""

from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from jaxsparse.activations.dataflows import rows_of, sum_dtype
from jaxsparse.activations.faults import poison
from jaxsparse.activations.maps import KernelMap
from jaxsparse.activations.sites import same_sites
from jaxsparse.activations.tensor import SparseTensor, flagged

Reduction = Literal["max", "avg", "sum"]
_REDUCTIONS = ("max", "avg", "sum")


def pool(x: SparseTensor, kernel_map: KernelMap, reduce: Reduction = "max") -> SparseTensor:
    """y[j] = max, mean or sum of x[i] over the pairs (i, j) of a map.

    Absent sites count for nothing: a mean is over the sites that are there, a maximum of
    negative features is negative. An output that sees no site is 0.

    Args:
      x: features on the map's inputs.
      kernel_map: as for `sparse_conv`.
      reduce: "max", "avg" or "sum". The gradient of a maximum goes in equal parts to all
        that reach it.

    Raises:
      ValueError: an unknown reduction, a map of other coordinates (flagged under `jit`).
      TypeError: features that are no floats.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxsparse import activations as act
      >>> x = act.sparse_tensor(jnp.array([[0, 0], [0, 1], [0, 4]]), jnp.array([[1.], [5.], [2.]]))
      >>> halves = act.kernel_map(x, 2, stride=2, outputs="floor", capacity=2)
      >>> act.pool(x, halves, "avg").features.ravel().tolist()
      [3.0, 2.0]
    """
    _check(reduce, x.features)
    same = same_sites(x.sites, kernel_map.inputs, "pool")
    index, reverse = kernel_map.index, kernel_map.reverse
    if reduce == "max":
        y = _largest(x.features, index, reverse)
    else:
        y = _sum(x.features, index, reverse)
        if reduce == "avg":
            met = jnp.sum(index < x.capacity, axis=0)
            y = (y / jnp.maximum(met, 1).astype(sum_dtype(y))[:, None]).astype(y.dtype)
    return flagged(y, kernel_map.outputs, same & x.sites.ok & kernel_map.inputs.ok)


def global_pool(x: SparseTensor, reduce: Reduction = "max") -> Float[Array, "batch channels"]:
    """Max, mean or sum over all sites of each batch; 0 for a batch without sites.

    Args:
      x: the tensor; of one where something was lost under `jit`, NaN.
      reduce: "max", "avg" or "sum".

    Raises:
      ValueError: an unknown reduction.
      TypeError: features that are no floats.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxsparse import activations as act
      >>> x = act.sparse_tensor(jnp.array([[0, 0], [0, 1], [1, 4]]), jnp.array([[1.], [5.], [2.]]))
      >>> act.global_pool(x).ravel().tolist()
      [5.0, 2.0]
    """
    _check(reduce, x.features)
    batches, dtype = x.bounds.batch, sum_dtype(x.features)
    batch = jnp.where(x.valid, x.coordinates[:, 0], batches)
    features = jnp.where(x.valid[:, None], x.features, 0).astype(dtype)
    met = jax.ops.segment_sum(x.valid.astype(dtype), batch, batches + 1)[:-1, None]
    if reduce == "max":
        y = jax.ops.segment_max(features, batch, batches + 1)[:-1]
        y = jnp.where(met > 0, y, 0)
    else:
        y = jax.ops.segment_sum(features, batch, batches + 1)[:-1]
        y = y / jnp.maximum(met, 1) if reduce == "avg" else y
    y = y.astype(x.features.dtype)
    return poison(y, x.sites.ok)


def _check(reduce, features):
    if reduce not in _REDUCTIONS:
        raise ValueError(f"reduce={reduce!r} is none of {', '.join(_REDUCTIONS)}.")
    if not jnp.issubdtype(features.dtype, jnp.floating):
        raise TypeError(f"features have dtype {features.dtype}, need a float.")


@jax.custom_vjp
@jax.jit
def _sum(x, index, reverse):
    del reverse
    return _gathered_sum(x, index)


def _gathered_sum(x, index):
    fetch = rows_of(x)
    y = jnp.zeros((index.shape[1], x.shape[1]), sum_dtype(x))
    return lax.scan(lambda y, rows: (y + fetch(rows), None), y, index)[0].astype(x.dtype)


_sum.defvjp(
    lambda x, index, reverse: (_sum(x, index, reverse), reverse),
    lambda reverse, g: (_gathered_sum(g, reverse), None, None),
)


@jax.custom_vjp
@jax.jit
def _largest(x, index, reverse):
    del reverse
    fetch, least = rows_of(x), jnp.array(-jnp.inf, x.dtype)

    def step(y, rows):
        met = (rows < x.shape[0])[:, None]
        return jnp.maximum(y, jnp.where(met, fetch(rows), least)), None

    y = lax.scan(step, jnp.full((index.shape[1], x.shape[1]), least), index)[0]
    return jnp.where(jnp.any(index < x.shape[0], axis=0)[:, None], y, 0)


def _largest_fwd(x, index, reverse):
    y = _largest(x, index, reverse)
    return y, (x, y, index, reverse)


@jax.jit
def _largest_bwd(saved, g):
    x, y, index, reverse = saved
    fetch, fetch_y = rows_of(x), rows_of(y)

    def count(hits, rows):
        met = (rows < x.shape[0])[:, None]
        return hits + (met & (fetch(rows) == y)).astype(g.dtype), None

    hits = lax.scan(count, jnp.zeros_like(g), index)[0]
    fetch_share = rows_of(g / jnp.maximum(hits, 1))

    def give(dx, rows):
        met = (rows < y.shape[0])[:, None]
        return dx + jnp.where(met & (fetch_y(rows) == x), fetch_share(rows), 0), None

    return lax.scan(give, jnp.zeros_like(x), reverse)[0], None, None


_largest.defvjp(_largest_fwd, _largest_bwd)
