"""Windows over images: what a convolution's kernel sees at every place."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

_LARGE = 4 * 2**20  # bytes of patches from which on blocks are worth a loop
_BLOCK = 2**20  # bytes of a block's patches: what a core's second cache holds
_ROWS = 256  # of a block at least: each unpacks the kernel anew


@dataclasses.dataclass(frozen=True)
class Window:
    """The geometry of a convolution, an entry for every spatial axis.

    Attributes:
      size: of the kernel.
      strides: from one place to the next.
      dilation: from one tap to the next.
      padding: zeros before and after the image; below zero so many pixels less.
    """

    size: tuple[int, ...]
    strides: tuple[int, ...]
    dilation: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]

    @property
    def lifted(self) -> "Window":
        """Over images with an axis of size 1 before the others."""
        one = (1,)
        return Window(
            one + self.size, one + self.strides, one + self.dilation, ((0, 0), *self.padding)
        )

    def reach(self, places: Sequence[int]) -> list[int]:
        """How many pixels along each axis the windows at so many places see."""
        return [
            (n - 1) * stride + (k - 1) * dilation + 1
            for n, k, stride, dilation in zip(
                places, self.size, self.strides, self.dilation, strict=True
            )
        ]

    def places(self, sizes: Sequence[int]) -> tuple[int, ...]:
        """How many places along each axis an image of these sizes has."""
        one = self.reach([1] * len(self.size))
        return tuple(
            max(0, (size + low + high - seen) // stride + 1)
            for size, (low, high), seen, stride in zip(
                sizes, self.padding, one, self.strides, strict=True
            )
        )

    def pad(self, x: jax.Array) -> jax.Array:
        """An image (batch, *sizes, channels) with its padding."""
        edges = [(low, high, 0) for low, high in self.padding]
        return lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *edges, (0, 0, 0)])

    def patches(self, x: jax.Array) -> jax.Array:
        """What a window sees at every place: (batch, *places, taps, channels) from padded x.

        Slices, because `lax.conv_general_dilated_patches` is itself a dense convolution.
        """
        batch, *sizes, channels = x.shape
        reach = [d * (k - 1) for d, k in zip(self.dilation, self.size, strict=True)]
        # A window larger than the image has no place, and its taps lie outside.
        if any(isinstance(n, int) and n <= r for n, r in zip(sizes, reach, strict=True)):
            bare = dataclasses.replace(self, padding=((0, 0),) * len(sizes))
            return jnp.zeros((batch, *bare.places(sizes), math.prod(self.size), channels), x.dtype)

        def tap(place):
            begin = [d * p for d, p in zip(self.dilation, place, strict=True)]
            end = [b + n - r for b, n, r in zip(begin, sizes, reach, strict=True)]
            return lax.slice(x, (0, *begin, 0), (batch, *end, channels), (1, *self.strides, 1))

        return jnp.stack([tap(place) for place in np.ndindex(*self.size)], axis=-2)


def by_patches(
    x: jax.Array,
    window: Window,
    product: Callable[[jax.Array], Any],
    blocks: bool = False,
) -> jax.Array:
    """(batch, *places, outputs) of an image, by a product of the matrix of its patches.

    A window of 3x3 over C channels makes 9 C numbers of every place, so that the whole matrix
    is nine times the image, and memory that large takes a CPU longer to touch than to multiply.

    Args:
      x: (batch, *sizes, channels).
      window: over x.
      product: of a matrix (rows, taps * channels).
      blocks: whether a large matrix is made and multiplied in blocks of places that stay in a
        cache. Backwards, their loop would add each block's share of dx to an array as large as x.
    """
    places = window.places(x.shape[1:-1])

    def multiply(patches):
        rows, columns = patches.shape[:-2], math.prod(patches.shape[-2:])
        y = product(patches.reshape(math.prod(rows), columns))
        return y.reshape(*rows, y.shape[-1])

    x = window.pad(x)
    if blocks and _large(x, window, places):
        return _by_blocks(multiply, x, window, places)
    return multiply(window.patches(x))


def _by_blocks(multiply, x, window, places):
    """(batch, *places, outputs) of padded x, by `multiply` of one block's patches at a time.

    What is cut are places, not the batch, which may lie on several devices.
    """
    room = max(1, _BLOCK // _bytes_a_place(x, window), _ROWS // x.shape[0])
    block = _block(places, room)
    grid = [-(-n // b) for n, b in zip(places, block, strict=True)]
    seen = window.reach(block)
    # The last block may reach beyond the last place.
    last = [(g - 1) * b * s for g, b, s in zip(grid, block, window.strides, strict=True)]
    more = [max(0, e + n - m) for e, n, m in zip(last, seen, x.shape[1:-1], strict=True)]
    x = jnp.pad(x, [(0, 0), *((0, n) for n in more), (0, 0)])

    def one(number):
        start = []
        for count, size, stride in reversed([*zip(grid, block, window.strides, strict=True)]):
            start.insert(0, number % count * (size * stride))
            number = number // count
        part = lax.dynamic_slice(x, (0, *start, 0), (x.shape[0], *seen, x.shape[-1]))
        return multiply(window.patches(part))

    # No array of starts: custom partitioning takes no constants.
    y = lax.map(one, lax.iota(jnp.int32, math.prod(grid)))
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
    if symbolic or math.prod(window.size) == 1:
        return False
    return math.prod(places) * _bytes_a_place(x, window) > _LARGE


def _bytes_a_place(x, window):
    return x.shape[0] * math.prod(window.size) * x.shape[-1] * x.dtype.itemsize
