"""Kernel maps: which input row meets which output row at each tap of a convolution."""

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int32

from jaxsparse.activations.bounds import NOWHERE, Bounds
from jaxsparse.activations.sites import Sites, distinct_sites, require_room
from jaxsparse.activations.tensor import SparseTensor
from jaxsparse.activations.windows import PerAxis, Window, centred, require_int32
from jaxsparse.registration import pytree

Outputs = Literal["submanifold", "floor", "receptive"]


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
        pairs = _mirrored if window.mirrors else partial(_pairs, coarse=fine)
        index, reverse = pairs(fine, window=window)
        return KernelMap(index, reverse, fine, None, window)
    if isinstance(outputs, Sites):
        _refuse("given", out_shape=out_shape, capacity=capacity)
        _same_kind(fine, outputs)
        index, reverse = _pairs(fine, coarse=outputs, window=window)
        return KernelMap(index, reverse, fine, outputs, window)
    if outputs == "floor":
        bounds = window.floor_bounds(fine.bounds)
    elif out_shape is None:
        bounds = window.coarse_bounds(fine.bounds)
    else:
        bounds = Bounds.of_shape(fine.bounds.batch, out_shape)
        _same_kind(fine, bounds)
    options = dict(outputs=outputs, bounds=bounds, capacity=capacity)
    coarse, index, reverse = _strided(fine, window=window, **options)
    require_room(coarse)
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
        _refuse("given", out_shape=out_shape, capacity=capacity)
        _same_kind(coarse, outputs)
        index, reverse = _pairs(outputs, coarse=coarse, window=window)
        return KernelMap(reverse, index, coarse, outputs, window)
    if outputs != "receptive":
        raise ValueError(f'outputs={outputs!r} must be "receptive" or Sites.')
    bounds = window.fine_bounds(coarse.bounds)
    if out_shape is not None:
        bounds = Bounds.of_shape(coarse.bounds.batch, out_shape)
        _same_kind(coarse, bounds)
    fine, index, reverse = _transposed(coarse, window=window, bounds=bounds, capacity=capacity)
    require_room(fine)
    return KernelMap(reverse, index, coarse, fine, window)


def _refuse(outputs, **options):
    for name, value in options.items():
        if value is not None:
            raise ValueError(f"{name}={value} is an option of receptive outputs, not of {outputs}.")


def _same_kind(inputs: Sites, outputs: Sites | Bounds) -> None:
    one = inputs.bounds
    other = outputs.bounds if isinstance(outputs, Sites) else outputs
    if (one.batch, one.rank) != (other.batch, other.rank):
        raise ValueError(f"inputs in {one} and outputs in {other} differ in their batches or axes.")


@partial(jax.jit, static_argnames=("window", "outputs", "bounds", "capacity"))
def _strided(fine: Sites, *, window: Window, outputs: Outputs, bounds: Bounds, capacity):
    if outputs == "floor":
        keys = _floors(fine, window, bounds)
    else:
        keys, _ = _reached(fine, window, bounds)
    capacity = min(bounds.places, keys.size) if capacity is None else capacity
    coarse = distinct_sites(keys, bounds, capacity, fine.ok)
    return coarse, *_pairs(fine, coarse=coarse, window=window)


@partial(jax.jit, static_argnames=("window", "bounds", "capacity"))
def _transposed(coarse: Sites, *, window: Window, bounds: Bounds, capacity):
    keys = _spread(coarse, window, bounds)
    capacity = min(bounds.places, keys.size) if capacity is None else capacity
    fine = distinct_sites(keys, bounds, capacity, coarse.ok)
    return fine, *_pairs(fine, coarse=coarse, window=window)


@partial(jax.jit, static_argnames=("window",))
def _mirrored(fine: Sites, *, window: Window):
    """Both tables of a submanifold map with a middle: half of them is searched."""
    bounds, half = fine.bounds, window.taps // 2
    places = np.array(window.places[:half], np.int32).reshape(half, bounds.rank)
    moves = (places * window.dilation - window.padding).astype(np.int32)
    batch, *columns = _columns(fine)
    moved = [column + move[:, None] for column, move in zip(columns, moves.T, strict=True)]
    columns = [jnp.broadcast_to(batch, (half, fine.capacity)), *moved]
    lower = fine.find(bounds.keys(columns), _inside(columns, bounds) & fine.valid)
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


@partial(jax.jit, static_argnames=("window",))
def _pairs(fine: Sites, *, coarse: Sites, window: Window):
    """(index, reverse) of the pairs of a fine and a coarse set of sites."""
    keys, taps = _reached(fine, window, coarse.bounds)
    rows = coarse.find(keys, keys != NOWHERE)
    none = jnp.full((window.taps, fine.capacity), coarse.capacity, jnp.int32)
    inputs = jnp.arange(fine.capacity)
    # No tap of a site stands in two slots: those that stand for nothing are dropped.
    taps = jnp.where(rows < coarse.capacity, taps, window.taps)
    reverse = none.at[taps, inputs].set(rows, mode="drop")
    return _turned(reverse, coarse.capacity), reverse


def _columns(sites: Sites) -> list[Int32[Array, "n"]]:
    return list(jnp.moveaxis(sites.bounds.relative(sites.coordinates), -1, 0))


def _inside(columns, bounds):
    ends = (bounds.batch, *bounds.shape)
    tests = [(c >= 0) & (c < end) for c, end in zip(columns, ends, strict=True)]
    return jax.tree.reduce(jnp.logical_and, tests)


def _floors(fine: Sites, window: Window, coarse: Bounds) -> Int32[Array, "n"]:
    """The place of floor(p / s), by way of what both bounds leave: whole numbers throughout."""
    batch, *columns = _columns(fine)
    places = [batch]
    for a, column in enumerate(columns):
        shift = fine.bounds.lower[a] - window.stride[a] * coarse.lower[a]
        require_int32(0, fine.bounds.shape[a] - 1 + shift, "floor outputs")
        places.append((column + shift) // window.stride[a])
    return jnp.where(fine.valid, coarse.keys(places), NOWHERE)


def _reached(
    fine: Sites, window: Window, coarse: Bounds
) -> tuple[Int32[Array, "slots n"], Int32[Array, "slots n"]]:
    """Places of `coarse` whose windows hold each site, `NOWHERE` where a slot has none; taps."""
    batch, *columns = _columns(fine)
    keys, taps, inside = batch[None], jnp.zeros_like(batch)[None], fine.valid[None]
    for a, column in enumerate(columns):
        s, d = window.stride[a], window.dilation[a]
        # p + pad - s q0 = t dil + s (q - q0), with q0 the least output.
        shift = fine.bounds.lower[a] + window.padding[a] - s * coarse.lower[a]
        reach = d * (window.size[a] - 1)
        require_int32(shift - reach, shift + fine.bounds.shape[a] - 1, "this window's places")
        moved = column + shift
        tap = jnp.asarray(window.hits(a))[moved % s].T
        place = (moved - tap * d) // s
        good = (tap >= 0) & (place >= 0) & (place < coarse.shape[a])
        n = column.shape[0]
        keys = (keys[:, None] * coarse.shape[a] + place).reshape(-1, n)
        taps = (taps[:, None] * window.size[a] + tap).reshape(-1, n)
        inside = (inside[:, None] & good).reshape(-1, n)
    return jnp.where(inside, keys, NOWHERE), taps


def _spread(coarse: Sites, window: Window, fine: Bounds) -> Int32[Array, "taps n"]:
    """Places of `fine` that each site's window holds."""
    batch, *columns = _columns(coarse)
    keys, inside = batch[None], coarse.valid[None]
    for a, column in enumerate(columns):
        s, reach = window.stride[a], window.dilation[a] * (window.size[a] - 1)
        shift = s * coarse.bounds.lower[a] - window.padding[a] - fine.lower[a]
        last = shift + s * (coarse.bounds.shape[a] - 1) + reach
        require_int32(shift, last, "this window's places")
        taps = jnp.arange(window.size[a], dtype=jnp.int32)[:, None] * window.dilation[a]
        place = column * s + shift + taps
        n = column.shape[0]
        keys = (keys[:, None] * fine.shape[a] + place).reshape(-1, n)
        inside = (inside[:, None] & (place >= 0) & (place < fine.shape[a])).reshape(-1, n)
    return jnp.where(inside, keys, NOWHERE)
