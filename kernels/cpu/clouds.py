"""Sparse convolution and its kernel maps, on raw arrays.

    pairs     y[j] = sum over taps t of x[index[t, j]] @ w[t]
    outer     dw[t] = sum over outputs j of x[index[t, j]]ᵀ g[j]
    sort      keys in rising order, and where each was
    distinct  the different keys in rising order
    map       which row meets which at each tap, by merging

Fetch on demand, within tiles of outputs: only pairs that are there are multiplied, in float32.
An index that is no row of x means none; `order` lists the outputs so that near ones are near.
"""

import jax
import jax.numpy as jnp
import numpy as np

from jaxsparse.kernels.cpu import library


def pairs(x, w, index, order):
    """(m, outputs) in float32, of x (n, inputs), w (taps, inputs, outputs), index (taps, m)."""
    shape = index.shape[1], w.shape[2]
    return _call("pairs", _floats(shape), *_f32(x, w), index, order)


def outer(x, g, index, order):
    """(taps, inputs, outputs) in float32, of x (n, inputs), g (m, outputs), index (taps, m)."""
    shape = index.shape[0], x.shape[1], g.shape[1]
    return _call("outer", _floats(shape), *_f32(x, g), index, order)


def sort(keys):
    """Keys (n,), none negative, in rising order, and where each was; equal ones stay in order."""
    return _call("sort", (_whole(keys.shape), _whole(keys.shape)), keys)


def distinct(keys, room):
    """The first `room` different keys (n,) in rising order, 2^31 - 1 for none, and their number."""
    return _call("distinct", (_whole((room,)), _whole(())), keys)


def pair_map(fine_keys, fine_rows, coarse_keys, coarse_rows, mirrors, **axes):
    """(index (taps, coarse), reverse (taps, fine)) of places in rising order and their rows.

    Args:
      mirrors: both are the same places, under a window whose taps mean pairs both ways.
      axes: what `WindowAxis` in native/src/drivers/clouds.h holds, a number an axis each.
    """
    taps = int(np.prod(axes["size"]))
    shapes = _whole((taps, *coarse_keys.shape)), _whole((taps, *fine_keys.shape))
    numbers = {name: np.array(values, np.int64) for name, values in axes.items()}
    operands = fine_keys, fine_rows, coarse_keys, coarse_rows
    return _call("map", shapes, *operands, mirrors=np.bool_(mirrors), **numbers)


def _f32(*arrays):
    return [jnp.asarray(array, jnp.float32) for array in arrays]


def _floats(shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def _whole(shape):
    return jax.ShapeDtypeStruct(shape, jnp.int32)


def _call(name, results, *operands, **attributes):
    library.register()
    call = jax.ffi.ffi_call(f"jaxsparse_cloud_{name}", results, vmap_method="sequential")
    return call(*operands, **attributes)
