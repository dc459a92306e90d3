"""Values that a mask left out of what is stored together: they stay zero, whatever trains them."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

WORD = 32  # bits of a word of `held`


def hold(lost: np.ndarray) -> dict[str, np.ndarray]:
    """Bits of the values that stay zero: uint32 words (..., ceil(size / 32)), lowest first.

    Args:
      lost: boolean (stack, *values_shape).

    Returns:
      `held` by its name; nothing where no value is lost.
    """
    if not lost.any():
        return {}
    flat = lost.reshape(len(lost), -1)
    flat = np.pad(flat, ((0, 0), (0, -flat.shape[1] % WORD)))
    return {"held": np.packbits(flat, axis=1, bitorder="little").view("<u4")}


def zero_where(held: Any, values: Any) -> jax.Array:
    """The values with zeros where `held` has a bit."""
    stack = held.shape[:-1]
    bits = (jnp.asarray(held)[..., None] >> jnp.arange(WORD, dtype=jnp.uint32)) & 1 == 1
    shape = values.shape[len(stack) :]
    bits = bits.reshape(*stack, -1)[..., : math.prod(shape)].reshape(values.shape)
    return jnp.where(bits, jnp.zeros((), values.dtype), values)


# Nothing in a forward pass: the values held are zero already.
@jax.custom_jvp
def learned(values: jax.Array, held: jax.Array) -> jax.Array:
    """The values; no gradient passes through this to those that are held."""
    del held
    return values


@learned.defjvp
def _learned_jvp(primals, tangents):
    values, held = primals
    return learned(values, held), zero_where(held, tangents[0])  # for the next derivative too
