"""Convolution of sparse tensors along a kernel map, with gradients."""

from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxsparse.activations import dataflows, native
from jaxsparse.activations.maps import KernelMap
from jaxsparse.activations.sites import same_sites
from jaxsparse.activations.tensor import SparseTensor, flagged
from jaxsparse.packed.base import is_packed

Dataflow = Literal["native", "implicit", "fetch_on_demand", "gather_scatter"]
DATAFLOWS = ("native", "implicit", "fetch_on_demand", "gather_scatter")


def sparse_conv(
    x: SparseTensor,
    weights: Float[Array | np.ndarray, "*size inputs outputs"],
    kernel_map: KernelMap,
    bias: Float[Array | np.ndarray, "outputs"] | None = None,
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
      dataflow: how to sum, which changes results by rounding alone. "native": on the pairs
        alone, by the kernel for CPUs, of floats up to 32 bits; "implicit": patches of some
        rows at a time; "fetch_on_demand": tap by tap, a row for every output;
        "gather_scatter": on the pairs alone, for a map from `group_pairs`. None takes what a
        table of measurements says: on a CPU "native" where it can be had, else
        "gather_scatter" where pairs are listed and few, else "implicit"; `tune_dataflow`
        measures.

    Returns:
      Features on the map's outputs, of the dtype of x and the weights together.

    Raises:
      ValueError: weights of another window or number of channels, or of none; a map of other
        coordinates (flagged under `jit`), a dataflow that is unknown, lacks lists or cannot
        be had: "native" in an export, say, or on another platform.
      TypeError: features or weights that are no floats, weights that are packed.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxsparse import activations as act
      >>> x = act.sparse_tensor(jnp.array([[0, 1, 1], [0, 1, 2]]), jnp.ones((2, 1)))
      >>> act.sparse_conv(x, jnp.ones((3, 3, 1, 1)), act.kernel_map(x, 3)).features
      Array([[2.],
             [2.]], dtype=float32)
    """
    if is_packed(weights):
        raise TypeError(
            f"weights are packed, {weights}, and sums over pairs need them dense: "
            "js.unpack(weights) would work."
        )
    size = kernel_map.window.size
    if weights.shape[:-2] != size or weights.ndim < 3 or weights.shape[-2] != x.channels:
        raise ValueError(
            f"weights have shape {weights.shape}, need {(*size, x.channels)} and the outputs: the "
            f"map's window, then the channels of x."
        )
    if 0 in weights.shape[-2:]:
        raise ValueError(f"weights have shape {weights.shape}, need one channel or more each way.")
    if bias is not None and bias.shape != weights.shape[-1:]:
        raise ValueError(f"bias has shape {bias.shape}, needs {weights.shape[-1:]}.")
    for name, array in (("features", x.features), ("weights", weights)):
        if not jnp.issubdtype(array.dtype, jnp.floating):
            raise TypeError(f"{name} have dtype {array.dtype}, need a float.")
    if dataflow not in (None, *DATAFLOWS):
        raise ValueError(f"dataflow={dataflow!r} is none of {', '.join(DATAFLOWS)}.")
    lists = kernel_map.lists
    if dataflow == "gather_scatter" and lists is None:
        raise ValueError("gather_scatter multiplies lists of pairs; give group_pairs(kernel_map).")
    dtype = jnp.promote_types(x.features.dtype, weights.dtype)
    reason = no_native(dtype)
    if dataflow == "native" and reason:
        raise ValueError(f'dataflow="native" cannot be used: {reason}.')
    only = dataflow is not None
    if dataflow is None:
        here = not reason and jax.default_backend() == "cpu"
        dataflow = "native" if here else _fastest(kernel_map, x.channels)
    same = same_sites(x.sites, kernel_map.inputs, "sparse_conv")
    pairs = _Pairs(
        kernel_map.index,
        kernel_map.reverse,
        kernel_map.inputs.order,
        kernel_map.outputs.order,
        lists if dataflow == "gather_scatter" else None,
    )
    flat = weights.reshape(-1, *weights.shape[-2:]).astype(dtype)
    y: Any = _product(x.features.astype(dtype), flat, pairs, dataflow, only)
    if bias is not None:
        y = y + bias.astype(dtype)
    ok = same & x.sites.ok & kernel_map.inputs.ok
    if dataflow == "gather_scatter":
        ok = ok & lists.ok
    return flagged(y, kernel_map.outputs, ok)


# Listed rows, as a fraction of all that "implicit" multiplies, below which "gather_scatter" is
# faster, by the channels of x: where both take the same time by the rates of a simulated lidar
# scan with 6.5 and 9.5 of 27 neighbours, float32, one core of an AMD EPYC with AVX-512,
# jax 0.10.2. Other devices are unmeasured; `tune_dataflow` measures.
_BREAK_EVEN = ((128, 0.42), (64, 0.28), (32, 0.20), (16, 0.25), (0, 0.37))


def _fastest(kernel_map: KernelMap, channels: int) -> Dataflow:
    """Of XLA's, by what is known when compiling; `fetch_on_demand` won nowhere."""
    if kernel_map.lists is None:
        return "implicit"
    break_even = next(fraction for least, fraction in _BREAK_EVEN if channels >= least)
    grouping, outputs = kernel_map.lists.grouping, kernel_map.outputs.capacity
    rows = sum(len(taps) * room for taps, room in grouping.products)
    rows += 0 if grouping.middle is None else outputs
    faster = rows < break_even * kernel_map.window.taps * outputs
    return "gather_scatter" if faster else "implicit"


def no_native(dtype: Any) -> str | None:
    """Why the native kernel cannot multiply numbers of a dtype here, or None."""
    wide = f"it sums in float32, x and w are {dtype}" if dtype.itemsize > 4 else None
    return native.missing() or wide


class _Pairs(NamedTuple):
    """Of a `KernelMap` what products read."""

    index: Any
    reverse: Any
    inputs_order: Any
    outputs_order: Any
    lists: Any

    @property
    def inverse(self):
        lists = None if self.lists is None else self.lists.inverse
        return _Pairs(self.reverse, self.index, self.outputs_order, self.inputs_order, lists)


# The two below are linear in both of their factors, and each is the other's derivative.


@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
@partial(jax.jit, static_argnums=(3, 4))
def _product(x, weights, pairs, dataflow, only):
    if dataflow == "native":
        y = dataflows.native(x, weights, pairs.index, pairs.outputs_order, only=only)
    elif dataflow == "gather_scatter":
        y = dataflows.gather_scatter(x, weights, pairs.index, pairs.lists)
    else:
        y = getattr(dataflows, dataflow)(x, weights, pairs.index)
    return y.astype(x.dtype)


def _product_fwd(x, weights, pairs, dataflow, only):
    return _product(x, weights, pairs, dataflow, only), (x, weights, pairs)


@partial(jax.jit, static_argnums=(0, 1))
def _product_bwd(dataflow, only, saved, g):
    x, weights, pairs = saved
    dx = _product(g, weights.swapaxes(1, 2), pairs.inverse, dataflow, only)
    return dx, _sampled(x, g, pairs, dataflow, only), None


_product.defvjp(_product_fwd, _product_bwd)


@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
@partial(jax.jit, static_argnums=(3, 4))
def _sampled(x, g, pairs, dataflow, only):
    """dW[t] = sum over the pairs (i, j) of t of x[i]^T g[j]."""
    if dataflow == "native":
        order = pairs.outputs_order
        dw = dataflows.native_weight_gradient(x, g, pairs.index, order, only=only)
    elif dataflow == "gather_scatter":
        dw = dataflows.listed_weight_gradient(x, g, pairs.index, pairs.lists)
    else:
        dw = dataflows.weight_gradient(x, g, pairs.index)
    return dw.astype(x.dtype)


def _sampled_fwd(x, g, pairs, dataflow, only):
    return _sampled(x, g, pairs, dataflow, only), (x, g, pairs)


@partial(jax.jit, static_argnums=(0, 1))
def _sampled_bwd(dataflow, only, saved, dw):
    x, g, pairs = saved
    dx = _product(g, dw.swapaxes(1, 2), pairs.inverse, dataflow, only)
    return dx, _product(x, dw, pairs, dataflow, only), None


_sampled.defvjp(_sampled_fwd, _sampled_bwd)
