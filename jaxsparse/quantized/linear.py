"""`linear`: a layer that computes in integers, and is differentiated as if it did not round."""

import functools
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Num

from jaxsparse.packed.base import Packed
from jaxsparse.products.sparse_dot import sparse_dot
from jaxsparse.quantized.affine import DTYPES, Affine
from jaxsparse.quantized.calibrating import dynamic
from jaxsparse.quantized.int8_dot import int8_dot


def linear(
    x: Num[Array, "*batch_and_inputs"],
    packed: Packed,
    inputs: Affine | None = None,
    *,
    bias: Float[Array, "*outputs"] | None = None,
    activation: Literal["relu"] | None = None,
    out: Affine | None = None,
    implementation: str | None = None,
) -> Num[Array, "*batch_and_outputs"]:
    """A layer on codes: activation(x̂ W + bias), where x̂ is what the codes of x stand for.

    Forwards it is `int8_dot` of `inputs.quantize(x)`. Backwards it is straight-through: rounding
    is passed as if it were none, and what saturates (`Affine.covers`) has no gradient. There are
    gradients for x, the bias and the weight's scales; int8 values and the codes' own scale have
    none. They are in reverse mode.

    Layers hand each other codes where `out` of one is `inputs` of the next. Codes are integers,
    and to differentiate through them is an error: leave `out` away to train.

    Args:
      x: floating point, or codes of `inputs` already, of shape (..., *inputs).
      packed: int8 values with scales, as `js.pack(..., dtype=jnp.int8)` makes them.
      inputs: the codes of x, which `calibrate` finds; None for those of x's own range, found
        anew at every call.
      bias: floating, of the outputs' shape.
      activation: "relu" or None.
      out: the codes to return y in; None for floating y.
      implementation: as in `int8_dot`.

    Returns:
      y of shape (..., *outputs): x's dtype, float32 for codes x, or that of `out`.

    Raises:
      TypeError: x is neither floating point nor codes of `inputs`; `inputs` or `out` is no
        `Affine`.
      ValueError, TypeError: as `int8_dot`.

    Example:
      >>> import jaxsparse as js
      >>> packed = js.pack(jnp.eye(16), js.Block(4, 16), dtype=jnp.int8)
      >>> codes = js.quantized.of_range(-2, 2)
      >>> x = jnp.full(16, 1.5)
      >>> y = js.quantized.linear(x, packed, codes, activation="relu")
      >>> jax.grad(lambda x: js.quantized.linear(x, packed, codes).sum())(x).shape
      (16,)
    """
    for name, value in (("inputs", inputs), ("out", out)):
        if not isinstance(value, Affine | None):
            raise TypeError(
                f"linear: {name}= is of type {type(value).__name__}, no Affine; what calibrate "
                "returns for one weight would work"
            )
    floating = jnp.issubdtype(x.dtype, jnp.floating)
    if not floating and (inputs is None or x.dtype != inputs.dtype):
        codes = " or ".join(DTYPES) if inputs is None else inputs.dtype
        raise TypeError(
            f"x of {x.dtype} is neither floating point nor codes of inputs={inputs}; the Affine "
            f"that {codes} codes were made by would work"
        )
    inputs = dynamic(x) if inputs is None else inputs
    form = _Form(activation, implementation, jnp.dtype(x.dtype if floating else jnp.float32))
    # What int8_dot refuses it refuses here, too.
    if not floating or out is not None or getattr(packed, "scales", None) is None:
        codes = inputs.quantize(_not_differentiated(x)) if floating else x
        return _product(form, codes, packed, bias, inputs, out)
    return _straight_through(form, x, packed.scales, bias, (packed, inputs))


@jax.custom_jvp
def _not_differentiated(x):
    return x


@_not_differentiated.defjvp
def _refuse(primals, tangents):
    raise TypeError(
        "a layer that returns codes has no gradient; without out=, and in sparsify with "
        "hand_on=False, it would be differentiated straight through"
    )


class _Form(NamedTuple):
    """What a layer does, but for its arrays."""

    activation: Literal["relu"] | None
    implementation: str | None
    dtype: Any


def _product(form, codes, packed, bias, inputs, out=None):
    return int8_dot(
        codes,
        packed,
        scale=inputs.scale,
        zero_point=inputs.zero_point,
        bias=bias,
        activation=form.activation,
        out=out,
        preferred_element_type=form.dtype if out is None else None,
        implementation=form.implementation,
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _straight_through(form, x, scales, bias, rest):
    packed, inputs = rest
    return _product(form, inputs.quantize(x), packed.replace(scales=scales), bias, inputs)


def _forward(form, x, scales, bias, rest):
    return _straight_through(form, x, scales, bias, rest), (x, scales, bias, rest)


def _backward(form, saved, gradient):
    *moving, (packed, inputs) = saved

    def smooth(x, scales, bias):
        rounded = inputs.dequantize(inputs.quantize(lax.stop_gradient(x))).astype(x.dtype)
        # The value of the codes, and the slope of x.
        x = rounded + jnp.where(inputs.covers(x), x - lax.stop_gradient(x), 0)
        y = sparse_dot(x, packed.replace(scales=scales), preferred_element_type=form.dtype)
        y = y if bias is None else y + bias.astype(y.dtype)
        return jax.nn.relu(y) if form.activation == "relu" else y

    return *jax.vjp(smooth, *moving)[1](gradient), None


_straight_through.defvjp(_forward, _backward)
