"""`int8_dot`: codes of activations by packed int8 weights, summed in integers."""

from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, DTypeLike, Float, Integer, Num

import jaxsparse.kernels as kernels
from jaxsparse.packed.base import Packed
from jaxsparse.products.sparse_dot import as_rows, same_varying_axes, sharded_by_rows, whole
from jaxsparse.quantized.affine import DTYPES, Affine, scalars
from jaxsparse.quantized.primitive import int8_dot_p

ACTIVATIONS = (None, "relu")
MOST_INPUTS = (2**31 - 1) // (255 * 128)  # whose products always sum up to an int32


def int8_dot(
    x: Integer[Array, "*batch_and_inputs"],
    packed: Packed,
    *,
    scale: Float[Array, ""] | float,
    zero_point: Integer[Array, ""] | int = 0,
    bias: Float[Array, "*outputs"] | None = None,
    activation: Literal["relu"] | None = None,
    out: Affine | None = None,
    preferred_element_type: DTypeLike | None = None,
    implementation: str | None = None,
) -> Num[Array, "*batch_and_outputs"]:
    """Multiplies codes of activations by a packed int8 weight, exactly.

        y[..., o] = activation(scale · scales[o] · Σ_i (x[..., i] − zero_point) w[i, o] + bias[o])

    where W = w · scales is what `js.pack(..., dtype=jnp.int8)` stores. Sums are in int32 and
    never saturate within: every implementation and every instruction set finds the same
    integers. With `out`, y comes as the codes that `out.quantize(y)` gives, ready for the next
    product, and no float is written.

    It has no derivative: codes are integers.

    Args:
      x: codes, uint8 or int8, of shape (..., *inputs), as `sparse_dot` takes its x.
      packed: int8 values with scales, without stacked axes (map over those).
      scale: of the codes, a float32 scalar; it may be traced, and then is not checked.
      zero_point: the code of zero; a scalar that may be traced.
      bias: floating, of the outputs' shape.
      activation: "relu" or None.
      out: how y is stored as codes; None for floats.
      preferred_element_type: floating dtype of y, None for float32; or int32 for the sums
        Σ (x − zero_point) w themselves, which take no scale, bias or activation.
      implementation: "cpu", "xla", or None for the best that supports the call.

    Returns:
      y, of shape (..., *outputs).

    Raises:
      TypeError: x is not of 8 bits, `packed` does not hold int8 values with scales, or
        `preferred_element_type` is neither floating nor int32.
      ValueError: shapes do not fit; a scale is not positive and finite or a zero point no code;
        there are more inputs than an int32 can sum up; the implementation cannot run.

    Example:
      >>> import jax.numpy as jnp, jaxsparse as js
      >>> packed = js.pack(jnp.eye(16), js.Block(4, 16), dtype=jnp.int8)
      >>> codes = js.quantized.Affine(scale=0.5, zero_point=3)
      >>> x = codes.quantize(jnp.arange(16.0))
      >>> y = js.quantized.int8_dot(x, packed, scale=codes.scale, zero_point=codes.zero_point)
      >>> [float(number) for number in y[:4]]
      [0.0, 1.0, 2.0, 3.0]
    """
    if implementation is not None:
        kernels.check(implementation)
    _check_weight(packed)
    if x.dtype not in DTYPES:
        raise TypeError(f"int8_dot needs codes of {' or '.join(DTYPES)}, x is {x.dtype}.")
    rows, shaped = as_rows(x, packed)
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation={activation!r} is none of {ACTIVATIONS}.")
    out_dtype = _out_dtype(out, preferred_element_type)
    sums = out_dtype == jnp.int32
    if sums and (bias is not None or activation is not None):
        raise ValueError(
            "the sums alone (preferred_element_type=int32) take no bias or activation."
        )
    scale, zero_point = scalars(scale, zero_point, x.dtype)
    out_scale, out_zero = (
        (np.float32(1), np.int32(0)) if out is None else (out.scale, out.zero_point)
    )
    operands = [
        sharded_by_rows(rows),
        whole(packed.values),
        whole(packed.scales.astype(jnp.float32)),
        _bias(bias, packed.output_shape).reshape(-1),
        *(jnp.asarray(number) for number in (scale, zero_point, out_scale, out_zero)),
        *packed.index,
    ]
    y = int8_dot_p.bind(
        *same_varying_axes(*operands),
        layout=packed.layout,
        activation=activation,
        # Other floats are rounded from the float32 that they are computed in.
        out_dtype=jnp.dtype(
            jnp.float32
            if jnp.issubdtype(out_dtype, jnp.floating) and out_dtype != jnp.bfloat16
            else out_dtype
        ),
        implementation=implementation,
    )
    return shaped(y.astype(out_dtype))


def _check_weight(packed: Any) -> None:
    if not isinstance(packed, Packed):
        raise TypeError(f"int8_dot multiplies by a packed weight, not by {type(packed).__name__}.")
    if packed.values.dtype != jnp.int8 or packed.scales is None:
        raise TypeError(
            f"int8_dot needs int8 values with scales, this {type(packed).__name__} of shape "
            f"{packed.shape} stores {packed.values.dtype}: js.pack(weight, pattern, "
            "dtype=jnp.int8) would work."
        )
    if packed.batch_shape:
        raise ValueError(
            f"this packed weight stacks {packed.batch_shape} kernels: map over them with "
            "jax.vmap or jax.lax.scan."
        )
    if packed.matrix_shape[0] > MOST_INPUTS:
        raise ValueError(
            f"a packed weight of shape {packed.shape} sums over {packed.matrix_shape[0]} inputs, "
            f"and int32 holds the products of {MOST_INPUTS}: divide the inputs, and add the parts."
        )
    scales = packed.scales
    if not isinstance(scales, Tracer) and not (finite := np.isfinite(np.asarray(scales))).all():
        column = int(np.argmin(finite))
        raise ValueError(
            f"scales[{column}] is {np.asarray(scales)[column]} in a packed weight of shape "
            f"{packed.shape}: finite ones would work."
        )


def _out_dtype(out: Affine | None, asked: DTypeLike | None) -> Any:
    if out is not None:
        if asked is not None:
            raise ValueError(f"out= says that y is {out.dtype}: no preferred_element_type besides.")
        return jnp.dtype(out.dtype)
    if asked is None:
        return jnp.dtype(jnp.float32)
    if not jnp.issubdtype(asked, jnp.floating) and asked != jnp.int32:
        raise TypeError(
            f"preferred_element_type={jnp.dtype(asked).name} is neither floating point nor int32; "
            "for codes of 8 bits say what they stand for by out=."
        )
    return jax.dtypes.canonicalize_dtype(asked)


def _bias(bias: Any, outputs: tuple[int, ...]) -> jax.Array:
    """A bias in float32; none has no entries."""
    if bias is None:
        return jnp.zeros(0, jnp.float32)
    if not jnp.issubdtype(bias.dtype, jnp.floating):
        raise TypeError(f"the bias is {bias.dtype}, not floating point.")
    if bias.shape != outputs:
        raise ValueError(f"the bias has shape {bias.shape}, the outputs {outputs}.")
    return whole(bias.astype(jnp.float32))
