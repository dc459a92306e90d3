"""The dtype that packed values are stored in: as they are, cast, or int8 with scales.

What a dtype cannot hold is refused before anything is stored. Integers other than
int8 have no product of their own here, and an int8 has no NaN and no infinity: the
scale of a column that holds one would be none, and every weight of the column lost.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, DTypeLike

LARGEST = 127.0  # symmetric: -128 is not used
WORKS = "int8, with a scale for every output column, or a floating dtype would work"


def convert(
    flat: Array | np.ndarray, dtype: DTypeLike | None, xp: Any
) -> tuple[Any, Array | np.ndarray | None]:
    """Brings matrices to the dtype in which their values are stored.

    Args:
      flat: (stack, K, N), zero where masked.
      dtype: None, or the weight's own, for the values as they are.
      xp: numpy, or jax.numpy for a traced weight, of which only dtypes are checked.

    Returns:
      The values, and the scales (stack, N) of int8 values, for which
      values * scales is the weight; None for others.

    Raises:
      ValueError: the dtype cannot hold the values; says which one and what would work.
    """
    asked = flat.dtype if dtype is None else jnp.dtype(dtype)
    dtype = jax.dtypes.canonicalize_dtype(asked)  # 64 bits are 32 for JAX, unless it is told
    if dtype == flat.dtype:
        return flat, None
    if asked == flat.dtype and not jnp.issubdtype(asked, jnp.inexact):
        return _narrow(flat, dtype), None
    is_complex = jnp.issubdtype(flat.dtype, jnp.complexfloating)
    if is_complex and not jnp.issubdtype(dtype, jnp.complexfloating):
        raise ValueError(
            f"{flat.dtype} values stored in {dtype} would lose their imaginary parts; "
            f"complex64 or dtype=None would work"
        )
    if dtype == jnp.int8:
        return _quantize(flat, xp)
    if not jnp.issubdtype(dtype, jnp.inexact):
        raise ValueError(f"dtype={dtype} cannot hold the values of a {flat.dtype} weight; {WORKS}")
    if not isinstance(flat, Tracer):
        _check_range(flat, dtype)
    return flat.astype(dtype), None


def _narrow(flat, dtype):
    narrow = flat.astype(dtype)
    if (lost := narrow != flat).any():
        raise ValueError(
            f"{_entry(flat, lost)} does not fit into {dtype}; jax_enable_x64 keeps {flat.dtype}"
        )
    return narrow


def _check_range(flat, dtype):
    if not jnp.issubdtype(flat.dtype, jnp.inexact):
        flat = flat.astype(np.float64)
    with np.errstate(over="ignore"):
        lost = np.isfinite(flat) & ~np.isfinite(flat.astype(dtype))
    if lost.any():
        wider = "bfloat16" if np.abs(flat[lost]).max() < float(jnp.finfo(jnp.bfloat16).max) else ""
        raise ValueError(
            f"{_entry(flat, lost)} does not fit into {dtype}, whose largest is "
            f"{float(jnp.finfo(dtype).max):g}; scale the weight, or "
            f"{wider or 'jax_enable_x64'} would work"
        )


def _quantize(flat, xp):
    with np.errstate(over="ignore"):
        flat = flat.astype(jnp.float32)
    if not isinstance(flat, Tracer) and not (finite := np.isfinite(flat)).all():
        raise ValueError(
            f"{_entry(flat, ~finite)} cannot be quantized, for int8 has no such number; mask the "
            f"entry, make it finite in float32, or store a floating dtype"
        )
    scales = xp.max(xp.abs(flat), axis=1, initial=0.0) / xp.float32(LARGEST)
    scales = xp.where(scales == 0, xp.float32(1), scales)
    scales = xp.where(xp.isfinite(flat).all(axis=1), scales, xp.float32(np.nan))
    rounded = xp.round(flat / scales[:, None])
    return xp.clip(rounded, -LARGEST, LARGEST).astype(jnp.int8), scales


def _entry(flat, wrong) -> str:
    """The first wrong entry, in words."""
    stack, row, column = (int(i) for i in np.argwhere(wrong)[0])
    among = f" of kernel {stack}" if len(flat) > 1 else ""
    return f"{flat[stack, row, column]} at input {row} of output column {column}{among}"
