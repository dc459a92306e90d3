"""Convolutions by a packed kernel: a matrix of patches, times the kernel.

A window of 3x3 over C channels makes 9 C numbers of every place, so that the whole matrix
is nine times the image, and memory that large takes a CPU longer to touch than to multiply.
There it is made and multiplied in blocks of places small enough to stay in a cache.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import ShapedArray
from jax.custom_derivatives import SymbolicZero

from jaxsparse.products.standins import StandIn

_LARGE = 4 * 2**20  # bytes of patches from which on blocks are worth a loop
_BLOCK = 2**20  # bytes of a block's patches: what a core's second cache holds
_ROWS = 256  # of a block at least: each unpacks the kernel anew


def convolution(
    x: jax.Array,
    kernel: StandIn,
    params: Mapping[str, Any],
    out: ShapedArray,
    matrix_product: Callable[..., jax.Array],
) -> jax.Array | None:
    """What `lax.conv_general_dilated` gives for a packed kernel, without groups.

    Args:
      x: the image.
      kernel: what stands for the packed kernel.
      params: of the equation.
      out: shape and dtype of the result.
      matrix_product: as in `StandIn.product`.

    Returns:
      None where the kernel's storage knows no such product.
    """
    numbers = params["dimension_numbers"]
    _, into, *axes = numbers.rhs_spec
    batch, feature, *spatial = numbers.lhs_spec
    window = [kernel.shape[axis] for axis in axes]
    places = [out.shape[axis] for axis in numbers.out_spec[2:]]
    x = jnp.transpose(x, (batch, *spatial, feature))

    def multiply(patches, kernel):
        rows = patches.shape[: 1 + len(places)]
        patches = patches.reshape(math.prod(rows), *window, patches.shape[-1])
        y = kernel.product(patches, (*axes, into), (), matrix_product)
        return None if y is None else y.reshape(*rows, y.shape[-1])

    def whole(x, kernel):
        return multiply(_patches(_pad(x, params), window, params), kernel)

    def blocked(x, kernel):
        return _by_blocks(lambda p: multiply(p, kernel), _pad(x, params), window, places, params)

    if not _large(x, window, places):
        y = whole(x, kernel)
    elif jax.eval_shape(whole, x, kernel) is None:
        y = None
    else:
        y = _on_cpu(blocked, whole)(x, kernel)
    if y is None:
        return None
    batch, feature, *spatial = numbers.out_spec
    return jnp.moveaxis(y, range(y.ndim), (batch, *spatial, feature))


def _on_cpu(function: Callable, elsewhere: Callable) -> Callable:
    """`function` in what a CPU runs and nobody differentiates, in all else its equal.

    Backwards, a loop would add each block's share of dx to an array as large as x.
    """

    @jax.custom_jvp
    def choice(*args):
        return lax.platform_dependent(*args, cpu=function, default=elsewhere)

    def jvp(primals, tangents):
        primals, tree = jax.tree.flatten(primals)
        tangents = jax.tree.leaves(tangents, is_leaf=lambda t: isinstance(t, SymbolicZero))
        moving = [i for i, t in enumerate(tangents) if not isinstance(t, SymbolicZero)]

        def moved(*given):
            given = dict(zip(moving, given, strict=True))
            return elsewhere(*tree.unflatten([given.get(i, p) for i, p in enumerate(primals)]))

        return jax.jvp(moved, [primals[i] for i in moving], [tangents[i] for i in moving])

    choice.defjvp(jvp, symbolic_zeros=True)
    return choice


def _by_blocks(multiply, x, window, places, params):
    """(batch, *places, outputs) of padded x, by `multiply` of one block's patches at a time.

    What is cut are places, not the batch, which may lie on several devices.
    """
    room = max(1, _BLOCK // _bytes_a_place(x, window), _ROWS // x.shape[0])
    block = _block(places, room)
    grid = [-(-n // b) for n, b in zip(places, block, strict=True)]
    seen = _reach(block, window, params)
    starts = np.array([*np.ndindex(*grid)]) * block * params["window_strides"]
    # The last block may reach beyond the last place.
    more = np.maximum(0, starts[-1] + seen - x.shape[1:-1])
    x = jnp.pad(x, [(0, 0), *((0, n) for n in more), (0, 0)])

    def one(start):
        part = lax.dynamic_slice(x, (0, *start, 0), (x.shape[0], *seen, x.shape[-1]))
        return multiply(_patches(part, window, params))

    y = lax.map(one, jnp.asarray(starts, jnp.int32))
    y = y.reshape(*grid, *y.shape[1:])
    n = len(grid)
    y = y.transpose(n, *(axis for i in range(n) for axis in (i, n + 1 + i)), 2 * n + 1)
    y = y.reshape(x.shape[0], *(g * b for g, b in zip(grid, block, strict=True)), -1)
    return y[:, *(slice(size) for size in places)]


def _block(places: Sequence[int], room: int) -> list[int]:
    """How many places a block has along each axis; whole rows first, all blocks alike."""
    block = []
    for size in reversed(places):
        block.insert(0, -(-size // -(-size // room)))
        room = max(1, room // block[0])
    return block


def _large(x, window, places):
    symbolic = any(not isinstance(size, int) for size in x.shape)  # in an export
    if symbolic or math.prod(window) == 1:
        return False
    return math.prod(places) * _bytes_a_place(x, window) >= _LARGE


def _bytes_a_place(x, window):
    return x.shape[0] * math.prod(window) * x.shape[-1] * x.dtype.itemsize


def _reach(places, window, params):
    """The size of what windows at so many places see."""
    return [
        (n - 1) * stride + (k - 1) * dilation + 1
        for n, k, stride, dilation in zip(
            places, window, params["window_strides"], params["rhs_dilation"], strict=True
        )
    ]


def _pad(x, params):
    """Channels-last x with the convolution's padding, spread by its lhs_dilation."""
    edges = [
        (low, high, inner - 1)
        for (low, high), inner in zip(params["padding"], params["lhs_dilation"], strict=True)
    ]
    return lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *edges, (0, 0, 0)])


def windows(x: jax.Array, kernel: Sequence[int], params: Mapping[str, Any]) -> jax.Array:
    """What a convolution's kernel meets at every place: (batch, *places, *window, channels).

    Args:
      x: the image.
      kernel: shape of the kernel.
      params: of the equation.
    """
    numbers = params["dimension_numbers"]
    batch, feature, *spatial = numbers.lhs_spec
    window = [kernel[axis] for axis in numbers.rhs_spec[2:]]
    x = _pad(jnp.transpose(x, (batch, *spatial, feature)), params)
    found = _patches(x, window, params)
    return found.reshape(*found.shape[:-2], *window, found.shape[-1])


def _patches(x, window, params):
    """What a window sees at every place: (batch, *places, taps, channels) from padded x.

    Slices, because `lax.conv_general_dilated_patches` is itself a dense convolution.
    """
    strides, dilation = params["window_strides"], params["rhs_dilation"]
    batch, *sizes, channels = x.shape
    reach = [d * (k - 1) for d, k in zip(dilation, window, strict=True)]

    def tap(place):
        begin = [d * p for d, p in zip(dilation, place, strict=True)]
        end = [b + n - r for b, n, r in zip(begin, sizes, reach, strict=True)]
        return lax.slice(x, (0, *begin, 0), (batch, *end, channels), (1, *strides, 1))

    return jnp.stack([tap(place) for place in np.ndindex(*window)], axis=-2)
