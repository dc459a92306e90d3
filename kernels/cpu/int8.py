"""Codes of 8 bits by int8 blocks in integers: the call of the native kernel."""

import jax.numpy as jnp

from jaxsparse.kernels import ffi
from jaxsparse.kernels.cpu import library
from jaxsparse.kernels.layouts import BlockLayout

LARGEST = 32768  # side of a block


def unsupported(layout) -> str | None:
    """The reason why the kernel cannot take a weight, or None."""
    block = layout.block if isinstance(layout, BlockLayout) else layout.shape
    if max(block) > LARGEST:
        return f"a side of a block, or of other weights, is at most {LARGEST}, got {block}"
    return None


def int8_dot(x, values, scales, bias, *rest, layout, activation, out_dtype):
    """As `jaxsparse.kernels` says; what is refused under `jax.jit`, too, ends the program.

    That is a scale which is not positive and finite, a zero point which is no code, and indices
    as the other products refuse them. Weights that are not in blocks are spread out for the
    length of the call: single ones are multiplied no faster than a dense block of all.
    """
    library.register()
    numbers, index = rest[:4], rest[4:]
    if not isinstance(layout, BlockLayout):
        values = layout.todense(values, *index)
        values = jnp.pad(values, ((0, -layout.shape[0] % 4), (0, 0)))[None]  # whole quads of inputs
        index = jnp.array([0, 1], jnp.int32), jnp.zeros(1, jnp.int32)
    return ffi.call(
        "jaxsparse_block_int8",
        (x.shape[0], layout.shape[1]),
        out_dtype,
        x,
        values,
        *(jnp.asarray(i, jnp.int32) for i in index),
        scales,
        bias,
        *numbers,
        relu=activation == "relu",
    )
