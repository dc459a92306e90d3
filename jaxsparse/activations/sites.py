"""The places where a sparse tensor has features: coordinates, and how to find them."""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, Int32

from jaxsparse.activations.bounds import (
    NOWHERE,
    Bounds,
    distinct_places,
    smallest_bounds,
    sorted_places,
)
from jaxsparse.activations.faults import is_known, require
from jaxsparse.registration import pytree


@pytree(bounds=lambda fields: Bounds(**fields))
@dataclasses.dataclass(frozen=True, eq=False)
class Sites:
    """Distinct coordinates with room to spare; made by `sites`, or as outputs of a `KernelMap`.

    Attributes:
      coordinates: rows of (batch, *coordinate), in the user's order; rows of -1 behind them.
      keys: places of the rows within `bounds` in rising order.
      order: the row of each key.
      needed: how many sites there are; more than the capacity if some did not fit.
      ok: False once something was lost or mistaken on the way here, which only happens under
        `jit`; `checked` then says what.
      bounds: the box they lie in.
    """

    coordinates: Int32[Array, "capacity axes"]
    keys: Int32[Array, "capacity"]
    order: Int32[Array, "capacity"]
    needed: Int32[Array, ""]
    ok: Bool[Array, ""]
    bounds: Bounds

    @property
    def capacity(self) -> int:
        """Rows, used or not."""
        return self.coordinates.shape[-2]

    @property
    def count(self) -> Int32[Array, ""]:
        """Rows in use: the first ones."""
        return jnp.minimum(self.needed, self.capacity)

    @property
    def valid(self) -> Bool[Array, "capacity"]:
        """Which rows are in use."""
        return jnp.arange(self.capacity) < self.count

    @property
    def overflow(self) -> Bool[Array, ""]:
        """Whether there are more sites than fit."""
        return self.needed > self.capacity

    def find(self, keys: Int32[Array, "..."], inside: Bool[Array, "..."]) -> Int32[Array, "..."]:
        """The row of each place, the capacity where it is none of the sites.

        Args:
          keys: places within `bounds`.
          inside: which of them are meant.
        """
        # A scan is the fastest of the methods on a CPU, by three times and more.
        at = jnp.searchsorted(self.keys, keys.reshape(-1), method="scan").reshape(keys.shape)
        at = jnp.minimum(at, self.capacity - 1)
        return jnp.where(inside & (self.keys[at] == keys), self.order[at], self.capacity)

    def __repr__(self) -> str:
        return f"Sites(capacity={self.capacity}, {self.bounds})"


def sites(
    coordinates: Int[Array | np.ndarray, "n axes"],
    bounds: Bounds | None = None,
    *,
    count: int | Int32[Array, ""] | None = None,
    capacity: int | None = None,
) -> Sites:
    """Sites at given coordinates, in the order given.

    Args:
      coordinates: rows of (batch, *coordinate), all different.
      bounds: None takes the smallest that holds them, where their values are known.
      count: the rows in use, the first ones; None for all of them.
      capacity: rows to make room for; None for as many as are given.

    Raises:
      TypeError: coordinates that are no integers.
      ValueError: another shape, too little capacity, a coordinate or batch index out of
        bounds, the same coordinate twice. Under `jit`, what depends on values is flagged.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxsparse.activations import Bounds, sites
      >>> sites(jnp.array([[0, 2, 3], [0, 1, 1]]), Bounds(1, (0, 0), (4, 4)), capacity=4)
      Sites(capacity=4, bounds of 1 batches of [0, 4) x [0, 4))
    """
    if not hasattr(coordinates, "dtype"):
        coordinates = np.asarray(coordinates)
    if not jnp.issubdtype(coordinates.dtype, jnp.integer):
        raise TypeError(
            f"coordinates have dtype {coordinates.dtype}, need integers; voxelize() makes them "
            "of points."
        )
    if coordinates.ndim != 2 or coordinates.shape[1] < 2:
        raise ValueError(
            f"coordinates have shape {coordinates.shape}, need (rows, 1 + axes), the batch first."
        )
    given: int = coordinates.shape[0]
    least = max(given, 1)
    capacity = least if capacity is None else capacity
    needed: Any = given if count is None else count
    if capacity < least:
        raise ValueError(
            f"{given} rows do not fit a capacity of {capacity}; pass capacity={least}."
        )
    require_room(needed, capacity)
    if is_known(coordinates, needed):
        bounds = _check_rows(np.asarray(coordinates)[: int(needed)], bounds)
    elif bounds is None:
        raise ValueError("coordinates whose values are traced need bounds=Bounds(...).")
    if bounds.rank != coordinates.shape[1] - 1:
        raise ValueError(
            f"coordinates have {coordinates.shape[1] - 1} axes behind the batch, {bounds} has "
            f"{bounds.rank}."
        )
    made, outside, twice = _index(
        jnp.asarray(coordinates, jnp.int32),
        jnp.asarray(needed, jnp.int32),
        bounds=bounds,
        capacity=capacity,
    )
    if not is_known(made.ok):
        require(outside == 0, f"{{n}} coordinates lie outside {bounds}.", n=outside)
        require(twice == 0, "{n} coordinates stand twice; coalesce() reduces them.", n=twice)
    return made


def _check_rows(rows: np.ndarray, bounds: Bounds | None) -> Bounds:
    """Raises for what is wrong with rows whose values are known; the bounds, found or given."""
    rows = rows.astype(np.int64)
    if len(rows) and rows[:, 0].min() < 0:
        at = int(np.argmax(rows[:, 0] < 0))
        raise ValueError(f"row {at}, {_row(rows, at)}, has a negative batch index.")
    bounds = smallest_bounds(rows) if bounds is None else bounds
    if rows.shape[1] == bounds.rank + 1:
        lower, upper = (0, *bounds.lower), (bounds.batch, *bounds.upper)
        outside = np.any((rows < lower) | (rows >= upper), axis=1)
        if outside.any():
            at = int(np.argmax(outside))
            raise ValueError(
                f"row {at}, {_row(rows, at)}, lies outside {bounds}; widen the bounds, or leave "
                f"such rows out ({np.count_nonzero(outside)} of {len(rows)})."
            )
    order = np.lexsort(rows.T[::-1])
    same = np.all(rows[order][1:] == rows[order][:-1], axis=1)
    if same.any():
        at = int(np.argmax(same))
        first, second = sorted((int(order[at]), int(order[at + 1])))
        raise ValueError(
            f"rows {first} and {second} are both {_row(rows, first)}; coalesce() reduces "
            "duplicates by sum, mean, max or first."
        )
    return bounds


def _row(rows, at):
    return tuple(rows[at].tolist())


@partial(jax.jit, static_argnames=("bounds", "capacity"))
def _index(coordinates, needed, *, bounds, capacity):
    coordinates = jnp.pad(coordinates, ((0, capacity - coordinates.shape[0]), (0, 0)))
    meant = jnp.arange(capacity) < needed
    relative = bounds.relative(coordinates)
    inside = meant & bounds.contains(relative)
    keys = jnp.where(inside, bounds.keys(list(jnp.moveaxis(relative, -1, 0))), NOWHERE)
    keys, order = sorted_places(keys)
    twice = jnp.sum((keys[1:] == keys[:-1]) & (keys[1:] != NOWHERE))
    outside = jnp.sum(meant & ~inside)
    ok = (outside == 0) & (twice == 0) & (needed <= capacity)
    coordinates = jnp.where(meant[:, None], coordinates, -1)
    return Sites(coordinates, keys, order, needed, ok, bounds), outside, twice


def distinct_sites(
    keys: Int32[Array, "..."], bounds: Bounds, capacity: int, ok: Bool[Array, ""]
) -> Sites:
    """The sites at some places, in rising order; `require_room` says whether all fit.

    Args:
      keys: places within `bounds`, any number of times; `NOWHERE` for none.
      bounds: of the sites.
      capacity: rows to make room for.
      ok: whether all was well so far.

    Raises:
      ValueError: a capacity below 1.
    """
    if capacity < 1:
        raise ValueError(f"capacity={capacity} must be at least 1.")
    kept, needed = distinct_places(keys.reshape(-1), capacity)
    return Sites(
        bounds.coordinates(kept),
        kept,
        jax.lax.iota(jnp.int32, capacity),
        needed,
        ok & (needed <= capacity),
        bounds,
    )


def require_room(needed: Any, capacity: int) -> None:
    """Raises unless so many sites fit a capacity, or leaves that to `checked`."""
    require(
        (needed >= 0) & (needed <= capacity),
        "{needed} sites do not fit a capacity of {capacity}; pass capacity={needed} or more.",
        needed=needed,
        capacity=capacity,
    )


def same_sites(left: Sites, right: Sites, what: str) -> Any:
    """Whether two sets of sites are the same rows in the same order.

    Args:
      left, right: the sites.
      what: begins the message of the error.

    Raises:
      ValueError: they are not; if their coordinates are traced, only for other bounds or
        another capacity.
    """
    if left.bounds != right.bounds or left.capacity != right.capacity:
        raise ValueError(
            f"{what}: one has {left.bounds} and capacity {left.capacity}, the other "
            f"{right.bounds} and capacity {right.capacity}. A kernel map serves the coordinates "
            "it was built from; build one from this tensor."
        )
    if left.coordinates is right.coordinates:
        return jnp.bool_(True)
    differ = jnp.sum(jnp.any(left.coordinates != right.coordinates, axis=-1))
    require(
        differ == 0,
        what + ": {rows} rows of their coordinates differ. A kernel map serves the coordinates "
        "it was built from; build one from this tensor.",
        rows=differ,
    )
    return differ == 0
