"""Kernel maps: which input row meets which output row at each tap of a convolution."""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int32

from jaxsparse.activations import reach
from jaxsparse.activations.bounds import NOWHERE, Bounds
from jaxsparse.activations.native import TwoFold
from jaxsparse.activations.sites import Sites, distinct_sites, require_room
from jaxsparse.activations.tensor import SparseTensor
from jaxsparse.activations.windows import PerAxis, Window, centred
from jaxsparse.kernels.cpu import clouds
from jaxsparse.registration import pytree

Outputs = Literal["submanifold", "floor", "receptive"]
Reach = Callable[[Sites, Window, Bounds], Int32[Array, "..."]]


@pytree(window=lambda fields: Window(**fields))
@dataclasses.dataclass(frozen=True, eq=False)
class KernelMap:
    """The pairs of a convolution, as a value: build it once, give it to every layer it serves.

    Attributes:
      index: for each tap and output row the input row, the inputs' capacity where none is.
      reverse: for each tap and input row the output row, likewise.
      inputs: sites that features must stand on.
      elsewhere: sites of the outputs; None where they are the inputs' own.
      window: of the convolution.
      lists: the pairs once more, as `group_pairs` lays them out.
    """

    index: Int32[Array, "taps outputs"]
    reverse: Int32[Array, "taps inputs"]
    inputs: Sites
    elsewhere: Sites | None
    window: Window
    lists: Any = None

    @property
    def outputs(self) -> Sites:
        """Sites of the outputs."""
        return self.inputs if self.elsewhere is None else self.elsewhere

    @property
    def inverse(self) -> "KernelMap":
        """The same pairs with inputs and outputs in turn; taps stay as they are.

        Of a strided map this is the inverse convolution, back onto the finer sites.
        """
        elsewhere = None if self.elsewhere is None else self.inputs
        lists = None if self.lists is None else self.lists.inverse
        return KernelMap(self.reverse, self.index, self.outputs, elsewhere, self.window, lists)

    @property
    def sizes(self) -> Int32[Array, "taps"]:
        """Pairs of each tap."""
        return jnp.sum(self.index < self.inputs.capacity, axis=-1, dtype=jnp.int32)

    def __repr__(self) -> str:
        return (
            f"KernelMap(size={self.window.size}, stride={self.window.stride}, "
            f"{self.inputs.capacity} -> {self.outputs.capacity} rows)"
        )


def kernel_map(
    x: SparseTensor | Sites,
    size: PerAxis,
    *,
    stride: PerAxis = 1,
    dilation: PerAxis = 1,
    padding: PerAxis | None = None,
    outputs: Outputs | Sites = "submanifold",
    out_shape: Sequence[int] | None = None,
    capacity: int | None = None,
) -> KernelMap:
    """The map of y[q] = sum_t x[s q + t dil - pad] W[t], with no flip of the taps.

    Args:
      x: the inputs, or where they stand.
      size, stride, dilation: of the window, a number or one an axis.
      padding: None for dil ((k - 1) // 2), which centres odd windows; only outputs
        "receptive" and given ones take another.
      outputs: where y stands. "submanifold": at the inputs' sites, in their order.
        "floor": at the distinct floor(p / s), as MinkowskiEngine does; some may see nothing,
        there y is 0. "receptive": wherever a window holds an input, as spconv does. The
        latter two come in rising order. Or the sites themselves.
      out_shape: of "receptive": keep outputs in [0, out_shape) alone, as a dense convolution
        of this shape does; `convolved_shape` says which. None keeps all of them.
      capacity: rows for the outputs; None for as many as can never be too few.

    Raises:
      ValueError: options that do not go together, outputs beyond int32 keys, or more outputs
        than fit (flagged under `jit`).

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxsparse import activations as act
      >>> x = act.sparse_tensor(jnp.array([[0, 1, 1], [0, 1, 2], [0, 5, 5]]), jnp.ones((3, 2)))
      >>> act.kernel_map(x, 3).sizes.tolist()
      [0, 0, 0, 1, 3, 1, 0, 0, 0]
      >>> act.kernel_map(x, 3, stride=2, outputs="floor").outputs.count
      Array(3, dtype=int32)
    """
    fine = x.sites if isinstance(x, SparseTensor) else x
    window = Window.of(fine.bounds.rank, size, stride, dilation, padding)
    if isinstance(outputs, str) and outputs not in ("submanifold", "floor", "receptive"):
        raise ValueError(
            f'outputs={outputs!r} must be "submanifold", "floor", "receptive" or Sites.'
        )
    if outputs in ("submanifold", "floor"):
        _refuse(outputs, out_shape=out_shape)
        if window.padding != centred(window.size, window.dilation):
            raise ValueError(
                f"{outputs} outputs have padding {centred(window.size, window.dilation)}, not "
                f'{window.padding}; outputs="receptive" takes any.'
            )
    if outputs == "submanifold":
        _refuse(outputs, capacity=capacity)
        if set(window.stride) != {1}:
            raise ValueError(
                f"stride={window.stride}: submanifold outputs stand at the inputs, stride 1; "
                'outputs="floor" or "receptive" take others.'
            )
        index, reverse = _tables(fine, fine, window, mirrors=window.mirrors)
        return KernelMap(index, reverse, fine, None, window)
    if isinstance(outputs, Sites):
        coarse = _given(fine, outputs, out_shape=out_shape, capacity=capacity)
    elif outputs == "floor":
        coarse = _found(reach.floors, fine, window, window.floor_bounds(fine.bounds), capacity)
    else:
        bounds = _shaped(fine, out_shape) or window.coarse_bounds(fine.bounds)
        coarse = _found(reach.windows, fine, window, bounds, capacity)
    index, reverse = _tables(fine, coarse, window)
    return KernelMap(index, reverse, fine, coarse, window)


def transposed_map(
    x: SparseTensor | Sites,
    size: PerAxis,
    *,
    stride: PerAxis = 1,
    dilation: PerAxis = 1,
    padding: PerAxis | None = None,
    outputs: Literal["receptive"] | Sites = "receptive",
    out_shape: Sequence[int] | None = None,
    capacity: int | None = None,
) -> KernelMap:
    """The map of y[q] = sum of x[p] W[t] over p and t with q = s p + t dil - pad.

    To go back to where a strided convolution came from, take its map's `inverse` instead.

    Args:
      x: the inputs, or where they stand.
      size, stride, dilation, padding: as in `kernel_map`.
      outputs: "receptive", every q that some input reaches, in rising order; or the sites,
        such as those of a finer tensor.
      out_shape, capacity: as in `kernel_map`, of "receptive" outputs.

    Raises:
      ValueError: as `kernel_map`.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxsparse import activations as act
      >>> x = act.sparse_tensor(jnp.array([[0, 1, 1], [0, 1, 2]]), jnp.ones((2, 3)))
      >>> act.transposed_map(x, 2, stride=2).outputs.coordinates[:3]
      Array([[0, 2, 2],
             [0, 2, 3],
             [0, 2, 4]], dtype=int32)
    """
    coarse = x.sites if isinstance(x, SparseTensor) else x
    window = Window.of(coarse.bounds.rank, size, stride, dilation, padding)
    if isinstance(outputs, Sites):
        fine = _given(coarse, outputs, out_shape=out_shape, capacity=capacity)
    elif outputs != "receptive":
        raise ValueError(f'outputs={outputs!r} must be "receptive" or Sites.')
    else:
        bounds = _shaped(coarse, out_shape) or window.fine_bounds(coarse.bounds)
        fine = _found(reach.spread, coarse, window, bounds, capacity)
    index, reverse = _tables(fine, coarse, window)
    return KernelMap(reverse, index, coarse, fine, window)


def _refuse(outputs, **options):
    for name, value in options.items():
        if value is not None:
            raise ValueError(f"{name}={value} is an option of receptive outputs, not of {outputs}.")


def _given(inputs: Sites, outputs: Sites, **options) -> Sites:
    _refuse("given", **options)
    _same_kind(inputs.bounds, outputs.bounds)
    return outputs


def _shaped(inputs: Sites, out_shape: Sequence[int] | None) -> Bounds | None:
    if out_shape is None:
        return None
    bounds = Bounds.of_shape(inputs.bounds.batch, out_shape)
    _same_kind(inputs.bounds, bounds)
    return bounds


def _same_kind(one: Bounds, other: Bounds) -> None:
    if (one.batch, one.rank) != (other.batch, other.rank):
        raise ValueError(f"inputs in {one} and outputs in {other} differ in their batches or axes.")


def _found(
    reached: Reach, inputs: Sites, window: Window, bounds: Bounds, capacity: int | None
) -> Sites:
    made = _distinct(reached, inputs, window, bounds, capacity)
    require_room(made.needed, made.capacity)
    return made


@partial(jax.jit, static_argnums=(0, 2, 3, 4))
def _distinct(reached, inputs, window, bounds, capacity):
    keys = reached(inputs, window, bounds)
    capacity = min(bounds.places, keys.size) if capacity is None else capacity
    return distinct_sites(keys, bounds, capacity, inputs.ok)


def _tables(fine: Sites, coarse: Sites, window: Window, mirrors: bool = False):
    """(index, reverse) of the pairs of a fine and a coarse set of sites."""
    leaves, tree = jax.tree.flatten((fine, coarse))
    return _MAP(*leaves, tree=tree, window=window, mirrors=mirrors)


def _native(*leaves, tree, window, mirrors):
    fine, coarse = jax.tree.unflatten(tree, leaves)
    axes = {
        "size": window.size,
        "stride": window.stride,
        "dilation": window.dilation,
        "shift": reach.shifts(window, fine.bounds, coarse.bounds),
        "fine": fine.bounds.shape,
        "coarse": coarse.bounds.shape,
    }
    return clouds.pair_map(fine.keys, fine.order, coarse.keys, coarse.order, mirrors, **axes)


def _searched(*leaves, tree, window, mirrors):
    fine, coarse = jax.tree.unflatten(tree, leaves)
    return _mirrored(fine, window) if mirrors else _pairs(fine, coarse, window)


_MAP = TwoFold("cloud_map", _native, _searched)


def _mirrored(fine: Sites, window: Window):
    """Both tables of a submanifold map with a middle: half of them is searched."""
    bounds, half = fine.bounds, window.taps // 2
    places = np.array(window.places[:half], np.int32).reshape(half, bounds.rank)
    moves = (places * window.dilation - window.padding).astype(np.int32)
    batch, *columns = reach.columns(fine)
    moved = [column + move[:, None] for column, move in zip(columns, moves.T, strict=True)]
    columns = [jnp.broadcast_to(batch, (half, fine.capacity)), *moved]
    inside = bounds.contains(jnp.stack(columns, axis=-1)) & fine.valid
    lower = fine.find(bounds.keys(columns), inside)
    rows = jnp.arange(fine.capacity, dtype=jnp.int32)
    middle = jnp.where(fine.valid, rows, fine.capacity)[None]
    upper = _turned(lower, fine.capacity)[::-1]
    index = jnp.concatenate([lower, middle, upper])
    return index, index[::-1]


def _turned(table: Int32[Array, "taps n"], capacity: int) -> Int32[Array, "taps capacity"]:
    """For each tap and entry of a table the row that holds it; the table's width where none."""
    taps, width = table.shape
    rows = jnp.broadcast_to(jnp.arange(width, dtype=jnp.int32), table.shape)
    turned = jnp.full((taps, capacity), width, jnp.int32)
    return turned.at[jnp.arange(taps)[:, None], table].set(rows, mode="drop")


def _pairs(fine: Sites, coarse: Sites, window: Window):
    """Both tables of any other map."""
    keys, taps = reach.slots(fine, window, coarse.bounds)
    rows = coarse.find(keys, keys != NOWHERE)
    none = jnp.full((window.taps, fine.capacity), coarse.capacity, jnp.int32)
    inputs = jnp.arange(fine.capacity)
    # No tap of a site stands in two slots: those that stand for nothing are dropped.
    taps = jnp.where(rows < coarse.capacity, taps, window.taps)
    reverse = none.at[taps, inputs].set(rows, mode="drop")
    return _turned(reverse, coarse.capacity), reverse
