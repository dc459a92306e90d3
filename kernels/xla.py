"""XLA's own products, in jax.lax: every platform, every storage, always right.

    product:  y = x @ W        or, transposed,  y = x @ Wᵀ
    sampled:  values of xᵀ @ g at the places where W stores something
    int8_dot: codes by int8 W, in integers
    convolution: x @ W for the patches of images, on CPUs by blocks of them

Floats accumulate in float32 at least. How a storage is multiplied is for its layout to say
(`jaxsparse.kernels.layouts`): here are the dtypes, the same for all of them.
"""

import functools

import jax.numpy as jnp
from jax import lax

from jaxsparse.kernels.layouts import Layout
from jaxsparse.kernels.layouts.base import dot
from jaxsparse.kernels.windows import Window, by_patches

platforms = None  # every platform
exportable = True


def missing() -> str | None:
    """The reason why this implementation cannot run here: there is none."""
    return None


def unsupported(op, layout, x, values, out_dtype, transpose=False) -> str | None:
    """The reason why this implementation cannot take a call: there is none."""
    del op, layout, x, values, out_dtype, transpose
    return None


def product(x, values, *index, layout: Layout, transpose: bool, out_dtype):
    """x (M, K) by W, or x (M, N) by Wᵀ when `transpose`, in `out_dtype`."""
    compute, to = _dtypes(x, values, out_dtype)
    x, values = x.astype(compute), values.astype(compute)
    return layout.product(x, values, *index, transpose=transpose, to=to).astype(out_dtype)


def sampled(x, g, *index, layout: Layout, out_dtype):
    """xᵀ @ g for x (M, K) and g (M, N), only where the layout stores values."""
    compute, to = _dtypes(x, g, out_dtype)
    values = layout.sampled(x.astype(compute), g.astype(compute), *index, to=to)
    return values.astype(out_dtype)


def convolution(x, values, *index, layout: Layout, window: Window, out_dtype):
    """Images x (batch, *sizes, channels) under windows by W (taps * channels, N)."""
    options = {"layout": layout, "transpose": False, "out_dtype": out_dtype}

    def convolve(x, values, *index, blocks):
        multiply = functools.partial(product, **options)
        return by_patches(x, window, lambda rows: multiply(rows, values, *index), blocks)

    return lax.platform_dependent(
        x,
        values,
        *index,
        cpu=functools.partial(convolve, blocks=True),
        default=functools.partial(convolve, blocks=False),
    )


def int8_dot(
    x,
    values,
    scales,
    bias,
    scale,
    zero_point,
    out_scale,
    out_zero_point,
    *index,
    layout: Layout,
    activation,
    out_dtype,
):
    """Codes x (M, K) less their zero point by int8 W, in integers, and what is made of the sums.

    y = scale · scales · ((x − zero_point) @ W) + bias, then `activation`, in a floating
    `out_dtype`; in int32 the sums alone; in int8 or uint8 codes of y by `out_scale` and
    `out_zero_point`.
    """
    weight = layout.todense(values, *index)
    # Every platform has a product of int8 by int8, which leaves unsigned codes half a turn to go.
    turn = 0 if x.dtype == jnp.int8 else 128
    codes = x if x.dtype == jnp.int8 else lax.bitcast_convert_type(x ^ jnp.uint8(128), jnp.int8)
    sums = dot(codes, weight, (1, 0), jnp.int32)
    columns = jnp.sum(weight, axis=0, dtype=jnp.int32)
    sums = sums - (zero_point.astype(jnp.int32) - turn) * columns
    if out_dtype == jnp.int32:
        return sums
    y = sums.astype(jnp.float32) * (scale * scales)
    if bias.size:
        y = y + bias
    if activation == "relu":
        y = jnp.maximum(y, 0)
    if not jnp.issubdtype(out_dtype, jnp.integer):
        return y.astype(out_dtype)
    return to_codes(y * (jnp.float32(1) / out_scale), out_zero_point, out_dtype)


def to_codes(steps, zero_point, dtype):
    """The nearest codes of 8 bits, ties to even, of numbers counted in steps; NaN is the least."""
    limits = jnp.iinfo(dtype)
    low, high = ((limit - zero_point).astype(jnp.float32) for limit in (limits.min, limits.max))
    steps = jnp.where(steps > low, steps, low)
    steps = jnp.where(steps < high, steps, high)
    return (jnp.round(steps).astype(jnp.int32) + zero_point).astype(dtype)


def _dtypes(a, b, out_dtype):
    """What the factors are cast to, and what their products are summed in."""
    floating = [_wide(v.dtype) for v in (a, b) if jnp.issubdtype(v.dtype, jnp.floating)]
    compute = functools.reduce(jnp.promote_types, floating)
    return compute, jnp.promote_types(jnp.promote_types(compute, _wide(out_dtype)), jnp.float32)


def _wide(dtype):
    """bfloat16, which holds them all, for floats of 8 bits: JAX promotes those to nothing."""
    eight = jnp.issubdtype(dtype, jnp.floating) and jnp.dtype(dtype).itemsize == 1
    return jnp.dtype(jnp.bfloat16) if eight else dtype
