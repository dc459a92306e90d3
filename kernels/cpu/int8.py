"""Codes of 8 bits by int8 blocks in integers: the call of the native kernel."""

import jax.numpy as jnp

from jaxsparse.kernels import ffi
from jaxsparse.kernels.cpu import library
from jaxsparse.kernels.layouts import BlockLayout

LARGEST = 32768  # side of a block


def unsupported(layout) -> str | None:
    """The reason why the kernel cannot take a weight, or None."""
    if not isinstance(layout, BlockLayout):
        return f"{type(layout).__name__} is not among its storages of codes"
    if max(layout.block) > LARGEST:
        return f"a side of a block is at most {LARGEST}, got block={layout.block}"
    return None


def int8_dot(x, values, scales, bias, *rest, layout, activation, out_dtype):
    """As `jaxsparse.kernels` says; what is refused under `jax.jit`, too, ends the program.

    That is a scale which is not positive and finite, a zero point which is no code, and indices
    as the other products refuse them.
    """
    library.register()
    *numbers, indptr, rows = rest
    index = (jnp.asarray(i, jnp.int32) for i in (indptr, rows))
    return ffi.call(
        "jaxsparse_block_int8",
        (x.shape[0], layout.shape[1]),
        out_dtype,
        x,
        values,
        *index,
        scales,
        bias,
        *numbers,
        relu=activation == "relu",
    )
