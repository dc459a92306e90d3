"""XLA's own products, in jax.lax: every platform, every storage, always right.

    product:  y = x @ W        or, transposed,  y = x @ Wᵀ
    sampled:  values of xᵀ @ g at the places where W stores something

Both accumulate in float32 at least. How a storage is multiplied is for its layout to say
(`jaxsparse.kernels.layouts`): here are the dtypes, the same for all of them.
"""

import functools

import jax.numpy as jnp

from jaxsparse.kernels.layouts import Layout

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


def _dtypes(a, b, out_dtype):
    """What the factors are cast to, and what their products are summed in."""
    floating = [_wide(v.dtype) for v in (a, b) if jnp.issubdtype(v.dtype, jnp.floating)]
    compute = functools.reduce(jnp.promote_types, floating)
    return compute, jnp.promote_types(jnp.promote_types(compute, _wide(out_dtype)), jnp.float32)


def _wide(dtype):
    """bfloat16, which holds them all, for floats of 8 bits: JAX promotes those to nothing."""
    eight = jnp.issubdtype(dtype, jnp.floating) and jnp.dtype(dtype).itemsize == 1
    return jnp.dtype(jnp.bfloat16) if eight else dtype
