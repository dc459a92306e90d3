"""What a code of 8 bits stands for: a whole number of steps from the code of zero."""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, DTypeLike, Float, Integer

from jaxsparse.kernels.xla import to_codes
from jaxsparse.registration import pytree

DTYPES = ("uint8", "int8")
SMALLEST = float(np.finfo(np.float32).tiny)  # a smaller scale has no reciprocal in float32


@pytree(dtype=str)
@dataclasses.dataclass(frozen=True)
class Affine:
    """Codes of numbers: x ≈ scale · (code − zero_point).

    A pytree of two scalars, which may be traced; the dtype is static.

    Attributes:
      scale: float32 scalar, what one step of a code is worth: positive, normal and finite.
      zero_point: int32 scalar, the code of zero.
      dtype: of the codes: "uint8" or "int8".

    Raises:
      TypeError: another dtype, or fields that are no scalars.
      ValueError: a scale that is not positive, normal and finite, or a zero point that is no
        code. Both are looked at where they are no tracers.

    Example:
      >>> import jax.numpy as jnp, jaxsparse as js
      >>> codes = js.quantized.Affine(scale=0.5, zero_point=10)
      >>> codes.quantize(jnp.array([-9.0, 0.0, 0.25, 0.75, 1000.0]))
      Array([  0,  10,  10,  12, 255], dtype=uint8)
      >>> codes.dequantize(jnp.array([10, 12], jnp.uint8))
      Array([0., 1.], dtype=float32)
    """

    scale: Any
    zero_point: Any = 0
    dtype: Any = "uint8"

    def __post_init__(self):
        name = jnp.dtype(self.dtype).name
        if name not in DTYPES:
            raise TypeError(f"dtype={name}: codes are {' or '.join(DTYPES)}.")
        object.__setattr__(self, "dtype", name)
        if all(
            isinstance(value, Array | np.ndarray | np.generic | int | float | complex)
            for value in (self.scale, self.zero_point)
        ):  # else a tree of something that is no number
            scale, zero_point = scalars(self.scale, self.zero_point, name)
            object.__setattr__(self, "scale", scale)
            object.__setattr__(self, "zero_point", zero_point)

    @property
    def limits(self) -> tuple[int, int]:
        """The least code and the greatest."""
        return limits(self.dtype)

    def quantize(self, x: Float[Array, "*shape"]) -> Integer[Array, "*shape"]:
        """The nearest codes, of ties the even step: clip(round(x · (1/scale)) + zero_point).

        What lies beyond the last code becomes that code; NaN becomes the least.

        Raises:
          TypeError: x is not floating point.
        """
        if not jnp.issubdtype(x.dtype, jnp.floating):
            raise TypeError(f"only floating-point numbers have codes, x is {x.dtype}.")
        inverse = jnp.float32(1) / jnp.asarray(self.scale, jnp.float32)
        zero_point = jnp.asarray(self.zero_point, jnp.int32)
        return to_codes(x.astype(jnp.float32) * inverse, zero_point, self.dtype)

    def covers(self, x: Float[Array, "*shape"]) -> Bool[Array, "*shape"]:
        """Where x is no further than half a step from the nearest code, and so does not saturate.

        The zero point is rounded, so that the ends of a range may lie beyond the last code, by
        less than what rounding changes anyway. NaN is nowhere near.
        """
        low, high = self.limits
        inverse = jnp.float32(1) / jnp.asarray(self.scale, jnp.float32)
        places = x.astype(jnp.float32) * inverse + jnp.asarray(self.zero_point, jnp.float32)
        return (places >= low - 0.5) & (places <= high + 0.5)

    def dequantize(self, codes: Integer[Array, "*shape"]) -> Float[Array, "*shape"]:
        """What the codes stand for, in float32.

        Raises:
          TypeError: the codes are of another dtype.
        """
        if codes.dtype != self.dtype:
            raise TypeError(f"codes of {codes.dtype}, these numbers are stored in {self.dtype}.")
        steps = codes.astype(jnp.int32) - jnp.asarray(self.zero_point, jnp.int32)
        return steps.astype(jnp.float32) * jnp.asarray(self.scale, jnp.float32)


def limits(dtype: DTypeLike) -> tuple[int, int]:
    """The least code of a dtype and the greatest."""
    return int(jnp.iinfo(dtype).min), int(jnp.iinfo(dtype).max)


def check_scale(value: Any) -> None:
    """Raises unless the value is a scale that has a reciprocal in float32."""
    real = jnp.issubdtype(value.dtype, jnp.floating) or jnp.issubdtype(value.dtype, jnp.integer)
    if value.shape or not real:
        raise TypeError(f"scale of shape {value.shape} and {value.dtype} is no scalar real number.")
    if not SMALLEST <= float(value) <= 1 / SMALLEST:
        raise ValueError(f"scale={value} is not from {SMALLEST:.3g} to {1 / SMALLEST:.3g}.")


def check_zero_point(value: Any, dtype: DTypeLike) -> None:
    """Raises unless the value is a code of the dtype."""
    if value.shape or not jnp.issubdtype(value.dtype, jnp.integer):
        raise TypeError(
            f"zero_point of shape {value.shape} and {value.dtype} is no scalar integer."
        )
    low, high = limits(dtype)
    if not low <= int(value) <= high:
        raise ValueError(f"zero_point={value} is no code of {dtype}, which are {low} to {high}.")


def scalars(scale: Any, zero_point: Any, dtype: DTypeLike) -> tuple[Any, Any]:
    """A scale in float32 and a zero point in int32, checked unless they are traced.

    Numbers of Python and NumPy stay on the host.
    """
    checked = []
    for value, to, check in (
        (scale, np.float32, check_scale),
        (zero_point, np.int32, lambda value: check_zero_point(value, dtype)),
    ):
        value = value if isinstance(value, Array) else np.asarray(value)
        if isinstance(value, Tracer):
            if value.shape:
                raise TypeError(f"a scale and a zero point are scalars, not of {value.shape}.")
        else:
            check(value)
        checked.append(value.astype(to))
    return checked[0], checked[1]
