"""Convolution of sparse tensors along a kernel map, with gradients."""

from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxsparse.activations import dataflows
from jaxsparse.activations.maps import KernelMap
from jaxsparse.activations.sites import same_sites
from jaxsparse.activations.tensor import SparseTensor, flagged

Dataflow = Literal["implicit", "fetch_on_demand"]


def sparse_conv(
    x: SparseTensor,
    weights: Float[Array, "*size inputs outputs"],
    kernel_map: KernelMap,
    bias: Float[Array, "outputs"] | None = None,
    *,
    dataflow: Dataflow | None = None,
) -> SparseTensor:
    """y[j] = b + sum over the pairs (i, j) of taps t of x[i] W[t].

    What the map says is what is convolved: submanifold, strided, transposed or inverse.
    Differentiable (reverse mode) in features, weights and bias.

    Args:
      x: features on the map's inputs.
      weights: the window's shape, then (inputs, outputs).
      kernel_map: from `kernel_map`, `transposed_map`, or the `inverse` of one.
      bias: added to every output, also one that sees no input.
      dataflow: how to sum; None chooses.

    Returns:
      Features on the map's outputs, of the dtype of x and the weights together.

    Raises:
      ValueError: weights of another window or number of channels, a map of other
        coordinates (flagged under `jit`), an unknown dataflow.
      TypeError: features or weights that are no floats.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxsparse import activations as act
      >>> x = act.sparse_tensor(jnp.array([[0, 1, 1], [0, 1, 2]]), jnp.ones((2, 1)))
      >>> act.sparse_conv(x, jnp.ones((3, 3, 1, 1)), act.kernel_map(x, 3)).features
      Array([[2.],
             [2.]], dtype=float32)
    """
    size = kernel_map.window.size
    if weights.shape[:-2] != size or weights.ndim < 3 or weights.shape[-2] != x.channels:
        raise ValueError(
            f"weights have shape {weights.shape}, need {(*size, x.channels)} and the outputs: the "
            f"map's window, then the channels of x."
        )
    if bias is not None and bias.shape != weights.shape[-1:]:
        raise ValueError(f"bias has shape {bias.shape}, needs {weights.shape[-1:]}.")
    for name, array in (("features", x.features), ("weights", weights)):
        if not jnp.issubdtype(array.dtype, jnp.floating):
            raise TypeError(f"{name} have dtype {array.dtype}, need a float.")
    if dataflow not in (None, *_FORWARD):
        raise ValueError(f"dataflow={dataflow!r} is none of {', '.join(_FORWARD)}.")
    same = same_sites(x.sites, kernel_map.inputs, "sparse_conv")
    dtype = jnp.promote_types(x.features.dtype, weights.dtype)
    y: Any = _product(
        x.features.astype(dtype),
        weights.reshape(-1, *weights.shape[-2:]).astype(dtype),
        kernel_map.index,
        kernel_map.reverse,
        dataflow or "implicit",
    )
    if bias is not None:
        y = y + bias.astype(dtype)
    return flagged(y, kernel_map.outputs, same & x.sites.ok & kernel_map.inputs.ok)


_FORWARD = {"implicit": dataflows.implicit, "fetch_on_demand": dataflows.fetch_on_demand}


@partial(jax.custom_vjp, nondiff_argnums=(4,))
@partial(jax.jit, static_argnums=4)
def _product(x, weights, index, reverse, dataflow):
    del reverse
    return _FORWARD[dataflow](x, weights, index).astype(x.dtype)


def _product_fwd(x, weights, index, reverse, dataflow):
    return _product(x, weights, index, reverse, dataflow), (x, weights, index, reverse)


@partial(jax.jit, static_argnums=0)
def _product_bwd(dataflow, saved, g):
    x, weights, index, reverse = saved
    dx = _FORWARD[dataflow](g, weights.swapaxes(1, 2), reverse)
    dw = dataflows.weight_gradient(x, g, index)
    return dx.astype(x.dtype), dw.astype(weights.dtype), None, None


_product.defvjp(_product_fwd, _product_bwd)
