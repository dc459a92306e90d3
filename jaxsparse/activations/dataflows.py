"""y[j] = sum_t x[index[t, j]] W[t], where an index beyond x's rows means none: ways to sum.

All give the same numbers but for rounding. Sums are taken in float32 at least. Rows of x that
no index names are never read into a result, so they may hold anything.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int32

from jaxsparse.activations.native import TwoFold
from jaxsparse.kernels.cpu import clouds

_ROWS = 512  # of patches at a time: they and the weights stay in a core's caches


def implicit(
    x: Float[Array, "n inputs"],
    weights: Float[Array, "taps inputs outputs"],
    index: Int32[Array, "taps m"],
) -> Float[Array, "m outputs"]:
    """Implicit GEMM: patches of some rows, (rows, taps inputs), times all weights at once.

    Multiplies absent inputs too, as zeros; needs no list of pairs, so nothing can overflow.
    """
    m = index.shape[1]
    patches, flat = _patches(x), weights.reshape(-1, weights.shape[-1])
    y = lax.map(lambda rows: _dot(patches(rows), flat), _chunks(index))
    return y.reshape(-1, weights.shape[-1])[:m]


def fetch_on_demand(
    x: Float[Array, "n inputs"],
    weights: Float[Array, "taps inputs outputs"],
    index: Int32[Array, "taps m"],
) -> Float[Array, "m outputs"]:
    """Tap by tap: fetch a row for every output, multiply, add; no patches are written."""
    fetch = rows_of(x)
    y = jnp.zeros((index.shape[1], weights.shape[-1]), sum_dtype(x))

    def step(y, tap):
        return y + _dot(fetch(tap[0]), tap[1]), None

    return lax.scan(step, y, (index, weights))[0]


def gather_scatter(
    x: Float[Array, "n inputs"],
    weights: Float[Array, "taps inputs outputs"],
    index: Int32[Array, "taps m"],
    lists: Any,
) -> Float[Array, "m outputs"]:
    """Gather, GEMM, scatter: one batched product for each group of taps, on their pairs alone.

    Args:
      lists: `PairLists` of the same pairs.
    """
    m, outputs, middle = index.shape[1], weights.shape[-1], lists.grouping.middle
    fetch = rows_of(x)
    if middle is None:
        y = jnp.zeros((m, outputs), sum_dtype(x))
    else:
        y = _dot(fetch(index[middle]), weights[middle])
    parts = zip(lists.grouping.products, lists.inputs, lists.outputs, strict=True)
    for (taps, _), into, out in parts:
        products = _dot(fetch(into), weights[np.array(taps)])
        y = y.at[out.reshape(-1)].add(products.reshape(-1, outputs), mode="drop")
    return y


def listed_weight_gradient(
    x: Float[Array, "n inputs"],
    g: Float[Array, "m outputs"],
    index: Int32[Array, "taps m"],
    lists: Any,
) -> Float[Array, "taps inputs outputs"]:
    """`weight_gradient` on the pairs alone."""
    fetch, fetch_g, middle = rows_of(x), rows_of(g), lists.grouping.middle
    dw = jnp.zeros((index.shape[0], x.shape[1], g.shape[1]), sum_dtype(x))
    if middle is not None:
        met = (index[middle] < x.shape[0])[:, None]
        dw = dw.at[middle].set(_dot(fetch(index[middle]).T, jnp.where(met, g, 0)))
    parts = zip(lists.grouping.products, lists.inputs, lists.outputs, strict=True)
    for (taps, _), into, out in parts:
        products = _dot(fetch(into).swapaxes(1, 2), fetch_g(out))
        dw = dw.at[np.array(taps)].set(products)
    return dw


def weight_gradient(
    x: Float[Array, "n inputs"], g: Float[Array, "m outputs"], index: Int32[Array, "taps m"]
) -> Float[Array, "taps inputs outputs"]:
    """dW[t] = sum_j x[index[t, j]]^T g[j], some rows at a time."""
    taps, m = index.shape
    patches, inputs = _patches(x), x.shape[1]
    # Beyond the count g may hold NaN, and NaN times an absent input is no zero.
    met = jnp.any(index < x.shape[0], axis=0)
    g = jnp.where(met[:, None], g, 0)
    chunks = _chunks(index)
    g = jnp.pad(g, ((0, chunks.shape[0] * chunks.shape[1] - m), (0, 0)))
    g = g.reshape(*chunks.shape[:2], -1)

    def step(dw, part):
        return dw + _dot(patches(part[0]).T, part[1]), None

    dw = jnp.zeros((taps * inputs, g.shape[-1]), sum_dtype(x))
    return lax.scan(step, dw, (chunks, g))[0].reshape(taps, inputs, -1)


def native(
    x: Float[Array, "n inputs"],
    weights: Float[Array, "taps inputs outputs"],
    index: Int32[Array, "taps m"],
    order: Int32[Array, "m"],
    *,
    only: bool,
) -> Float[Array, "m outputs"]:
    """Fetch on demand within tiles of outputs, native on a CPU, else `implicit`.

    Args:
      order: the outputs' rows, near ones near each other.
      only: refuse where the kernel cannot be had.
    """
    return _PAIRS(x, weights, index, order, only=only)


def native_weight_gradient(
    x: Float[Array, "n inputs"],
    g: Float[Array, "m outputs"],
    index: Int32[Array, "taps m"],
    order: Int32[Array, "m"],
    *,
    only: bool,
) -> Float[Array, "taps inputs outputs"]:
    """`weight_gradient`, native on a CPU."""
    return _OUTER(x, g, index, order, only=only)


def _patches(x):
    fetch = rows_of(x)
    return lambda rows: fetch(rows).reshape(rows.shape[0], -1)


def _chunks(index: Int32[Array, "taps m"]) -> Int32[Array, "chunks rows taps"]:
    """The index by groups of output rows, the last one filled up with absent inputs."""
    taps, m = index.shape
    rows = min(_ROWS, m)
    whole = -(-m // rows)
    spare = jnp.iinfo(jnp.int32).max
    padded = jnp.pad(index.T, ((0, whole * rows - m), (0, 0)), constant_values=spare)
    return padded.reshape(whole, rows, taps)


def rows_of(x: Float[Array, "n inputs"]) -> Callable[[jax.Array], jax.Array]:
    """Fetches rows by their indices, zeros beyond the last."""
    # A row of zeros costs less than a test of every index.
    filled = jnp.pad(x, ((0, 1), (0, 0)))
    return lambda rows: jnp.take(filled, rows, axis=0, mode="clip")


def _dot(a, b):
    return jnp.matmul(a, b, preferred_element_type=sum_dtype(a))


def sum_dtype(x: jax.Array) -> Any:
    """What sums of x are taken in: float32 at least."""
    return jnp.promote_types(x.dtype, jnp.float32)


_PAIRS = TwoFold("cloud_product", clouds.pairs, lambda x, w, index, order: implicit(x, w, index))
_OUTER = TwoFold(
    "cloud_product", clouds.outer, lambda x, g, index, order: weight_gradient(x, g, index)
)
