"""The JAX primitive underneath convolutions by packed kernels.

    convolution   y = patches(x) @ W,   linear in x and in W's values

Forward no patch is in memory where an implementation can do without. Backwards both derivatives
are those of the product: dx gathers what each patch of it gets, and dvalues is a sampled
product of the patches.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax.interpreters import ad, batching
from jax.sharding import PartitionSpec, reshard

from jaxsparse.kernels.windows import Window, by_patches
from jaxsparse.packed.base import Packed
from jaxsparse.products.primitives import (
    bilinear_jvp,
    check_operands,
    product_p,
    product_primitive,
    rows_result,
    scan_batching,
    unless_zero,
)
from jaxsparse.products.sparse_dot import check_product, same_varying_axes, whole


def convolve(
    x: jax.Array,
    packed: Packed,
    window: Window,
    implementation: str | None,
    out_dtype,
) -> jax.Array:
    """Images (batch, *sizes, channels) under windows by a packed (taps * channels, N).

    Args:
      x: the images, floating point.
      packed: without stacked axes.
      window: its inputs are its taps, major to minor, times the channels.
      implementation: as in `sparse_dot`.
      out_dtype: of the result.

    Raises:
      TypeError, ValueError: as in `sparse_dot`.
    """
    check_product(x, packed, implementation)
    batch, *rest = jax.typeof(x).sharding.spec
    if any(axis is not None for axis in rest):
        x = reshard(x, PartitionSpec(batch, *[None] * len(rest)))
    operands = same_varying_axes(x, whole(packed.learned), *packed.index)
    wide = out_dtype if packed.scales is None else jnp.promote_types(out_dtype, jnp.float32)
    y = convolution_p.bind(
        *operands,
        layout=packed.layout,
        window=window,
        out_dtype=jnp.dtype(wide),
        implementation=implementation,
    )
    return y if packed.scales is None else (y * whole(packed.scales)).astype(out_dtype)


def _abstract(x, values, *index, layout, window, out_dtype, implementation):
    del implementation
    check_operands(layout, values.shape, index)
    taps, axes = math.prod(window.size), len(window.size)
    if x.ndim != axes + 2 or taps * x.shape[-1] != layout.shape[0]:
        raise ValueError(
            f"x has shape {x.shape}, the layout {layout} needs (batch, {axes} axes, channels) "
            f"with {taps} taps times the channels as its inputs."
        )
    shape = x.shape[0], *window.places(x.shape[1:-1]), layout.shape[1]
    return rows_result(x, shape, out_dtype, x, values, *index, rows=x.sharding.spec[0])


convolution_p = product_primitive("sparse_convolution", "convolution", _abstract)


def _by_products(x, values, *index, window, **params):
    product = functools.partial(product_p.bind, transpose=False, **params)
    return by_patches(x, window, lambda rows: product(rows, values, *index))


def _transpose(ct, x, values, *index, **params):
    if ad.is_undefined_primal(x):
        turned = jax.linear_transpose(lambda x: _by_products(x, values, *index, **params), x.aval)
        return [*turned(ct), None, *[None] * len(index)]
    turned = jax.linear_transpose(
        lambda values: _by_products(x, values, *index, **params), values.aval
    )
    return [None, *turned(ct), *[None] * len(index)]


def _batching(operands, axes, **params):
    x, *weight = operands
    if any(axis is not None for axis in axes[1:]):
        return scan_batching(convolution_p, operands, axes, **params)
    x = jnp.moveaxis(x, axes[0], 0)
    y = convolution_p.bind(x.reshape(x.shape[0] * x.shape[1], *x.shape[2:]), *weight, **params)
    return y.reshape(*x.shape[:2], *y.shape[1:]), 0


ad.primitive_jvps[convolution_p] = functools.partial(bilinear_jvp, convolution_p)
ad.primitive_transposes[convolution_p] = unless_zero(_transpose)
batching.primitive_batchers[convolution_p] = _batching
