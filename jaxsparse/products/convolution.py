"""Convolutions by a packed kernel: what windows see, times the kernel."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.core import ShapedArray

import jaxsparse.kernels as kernels
from jaxsparse.kernels.windows import Window, by_patches
from jaxsparse.products.convolution_primitive import convolve
from jaxsparse.products.standins import StandIn


def convolution(
    x: jax.Array,
    kernel: StandIn,
    params: Mapping[str, Any],
    out: ShapedArray,
    implementation: str | None,
    matrix_product: Callable[..., jax.Array],
) -> jax.Array | None:
    """What `lax.conv_general_dilated` gives for a packed kernel, without groups.

    Args:
      x: the image.
      kernel: what stands for the packed kernel.
      params: of the equation.
      out: shape and dtype of the result.
      implementation: as in `sparse_dot`.
      matrix_product: as in `StandIn.product`.

    Returns:
      None where the kernel's storage knows no such product.
    """
    numbers = params["dimension_numbers"]
    _, into, *axes = numbers.rhs_spec
    x, window = _seen(x, [kernel.shape[axis] for axis in axes], params)
    packed = kernel.matrix((*axes, into))
    if packed is not None and _has_own(implementation) and _known(x, window):
        y = convolve(x, packed, window, implementation, out.dtype)
    else:
        size = tuple(kernel.shape[axis] for axis in (*axes, into))

        def product(patches):
            patches = patches.reshape(patches.shape[0], *size)
            return kernel.product(patches, (*axes, into), (), matrix_product)

        patches = jax.eval_shape(lambda x: window.patches(window.pad(x)), x)
        rows = (math.prod(patches.shape[:-2]), math.prod(patches.shape[-2:]))
        if jax.eval_shape(product, jax.ShapeDtypeStruct(rows, x.dtype)) is None:
            return None
        y = by_patches(x, window, product)
    batch, feature, *spatial = numbers.out_spec
    return jnp.moveaxis(y, range(y.ndim), (batch, *spatial, feature))


def _has_own(implementation):
    """Whether convolutions are more to an implementation than products of patches."""
    return implementation is None or hasattr(kernels.load(implementation)[0], "convolution")


def _known(x, window):
    """Whether taps are several and sizes are numbers; one tap is a product of pixels."""
    return math.prod(window.size) > 1 and all(isinstance(n, int) for n in x.shape[1:])


def windows(x: jax.Array, kernel: Sequence[int], params: Mapping[str, Any]) -> jax.Array:
    """What a convolution's kernel meets at every place: (batch, *places, *window, channels).

    Args:
      x: the image.
      kernel: shape of the kernel.
      params: of the equation.
    """
    size = [kernel[axis] for axis in params["dimension_numbers"].rhs_spec[2:]]
    x, window = _seen(x, size, params)
    found = window.patches(window.pad(x))
    return found.reshape(*found.shape[:-2], *size, found.shape[-1])


def _seen(x, size, params):
    """Channels-last x, spread by its lhs_dilation and cut, and the windows over it."""
    batch, feature, *spatial = params["dimension_numbers"].lhs_spec
    x = jnp.transpose(x, (batch, *spatial, feature))
    padding, inner = tuple(params["padding"]), params["lhs_dilation"]
    if any(n != 1 for n in inner) or any(n < 0 for edge in padding for n in edge):
        edges = [(*edge, n - 1) for edge, n in zip(padding, inner, strict=True)]
        x = lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *edges, (0, 0, 0)])
        padding = ((0, 0),) * len(padding)
    strides = tuple(
        # One beyond the image leads nowhere, and is a number that kernels may have no room for.
        min(stride, max(1, n + sum(edge))) if isinstance(n, int) else stride
        for stride, n, edge in zip(params["window_strides"], x.shape[1:-1], padding, strict=True)
    )
    return x, Window(tuple(size), strides, tuple(params["rhs_dilation"]), padding)
