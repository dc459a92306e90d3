"""Points to voxels, and rows with the same coordinates to one."""

from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Int32, Shaped

from jaxsparse.activations.bounds import NOWHERE, Bounds, smallest_bounds, sorted_places
from jaxsparse.activations.dataflows import sum_dtype
from jaxsparse.activations.faults import is_known, require
from jaxsparse.activations.sites import distinct_sites, require_room
from jaxsparse.activations.tensor import SparseTensor, flagged

Reduction = Literal["mean", "sum", "max", "first"]
_REDUCTIONS = ("mean", "sum", "max", "first")


class Voxels(NamedTuple):
    """Rows reduced by their coordinates.

    Attributes:
      tensor: a row for each distinct coordinate, in rising order.
      rows: where each given row went; the capacity for one that went nowhere. With it,
        `tensor.features[rows]` goes back to the points.
      counts: given rows for each of the tensor's.
    """

    tensor: SparseTensor
    rows: Int32[Array, "n"]
    counts: Int32[Array, "capacity"]


def voxelize(
    points: Float[Array | np.ndarray, "n axes"],
    features: Shaped[Array | np.ndarray, "n channels"],
    size: float | Float[Array | np.ndarray, "axes"],
    bounds: Bounds | None = None,
    *,
    batch: Int[Array, "n"] | None = None,
    reduce: Reduction = "mean",
    capacity: int | None = None,
    valid: Bool[Array | np.ndarray, "n"] | None = None,
    outside: Literal["refuse", "drop"] = "refuse",
) -> Voxels:
    """Puts points into voxels: coordinate floor(point / size), features reduced.

    Args:
      points: positions. In float64 they are divided in float64, where their values are
        known: map coordinates in millimetres need it.
      features: a row a point.
      size: the edge of a voxel, or one an axis.
      bounds: of voxels, not of points; None takes the smallest where values are known.
      batch: the cloud of each point; None for one cloud.
      reduce: "mean", "sum", "max", or "first" in the order given. Integers are summed in the
        dtype of `jnp.sum`, their mean is float32.
      capacity: of voxels; None for as many as points.
      valid: which points there are; None for all. What others hold is not read.
      outside: points beyond the bounds are refused (flagged under `jit`), or dropped.

    Raises:
      ValueError: shapes that do not fit, a size that is not positive, points that are not
        finite or out of bounds, more voxels than fit.

    Example:
      >>> import numpy as np
      >>> from jaxsparse import activations as act
      >>> points = np.array([[0.01, 0.02], [0.04, 0.03], [-0.01, 0.2]])
      >>> voxels = act.voxelize(points, np.array([[1.0], [3.0], [5.0]]), size=0.05)
      >>> voxels.tensor.coordinates[:2].tolist(), voxels.tensor.features[:2].tolist()
      ([[0, -1, 4], [0, 0, 0]], [[5.0], [2.0]])
      >>> voxels.rows
      Array([1, 1, 0], dtype=int32)
    """
    known = is_known(points, valid)
    numbers = np if known and getattr(points, "dtype", None) == np.float64 else jnp
    spots: Any = numbers.asarray(points)
    if spots.ndim != 2 or not jnp.issubdtype(spots.dtype, jnp.floating):
        raise ValueError(f"points are {spots.dtype}{spots.shape}, need floats (n, axes).")
    if np.any(np.asarray(size) <= 0) or np.shape(size) not in ((), spots.shape[1:]):
        raise ValueError(f"size={size} must be positive, one number or {spots.shape[1]}.")
    if outside not in ("refuse", "drop"):
        raise ValueError(f'outside={outside!r} must be "refuse" or "drop".')
    places = numbers.floor(spots / numbers.asarray(size, spots.dtype))
    meant = numbers.ones(len(spots), bool) if valid is None else valid
    lost = numbers.sum(meant & ~numbers.all(numbers.isfinite(places), axis=1))
    require(lost == 0, "{n} points are not finite; mark them by valid=.", n=lost)
    clouds: Any = np.zeros(len(spots), np.int32) if batch is None else batch
    if bounds is None:
        if not is_known(spots, clouds, meant):
            raise ValueError("points whose values are traced need bounds=Bounds(...) of voxels.")
        chosen = np.asarray(meant)
        whole = np.asarray(places)[chosen].astype(np.int64)
        bounds = smallest_bounds(np.column_stack([np.asarray(clouds)[chosen], whole]))
    _check_rank(spots.shape[1], bounds)
    # Floats are compared before they are cut to int32, which NaN and 1e30 do not fit.
    lower, upper = (np.array(ends, places.dtype) for ends in (bounds.lower, bounds.upper))
    inside = numbers.all((places >= lower) & (places < upper), axis=1)
    if outside == "drop":
        meant = meant & inside
    places = numbers.where((meant & inside)[:, None], places, lower - 1)
    relative = jnp.asarray(places - lower, jnp.int32)
    inside = jnp.asarray(inside) & (clouds >= 0) & (clouds < bounds.batch)
    keys = bounds.keys([jnp.asarray(clouds, jnp.int32), *relative.T])
    return _reduce(keys, features, jnp.asarray(meant), inside, bounds, reduce, capacity, lost == 0)


def coalesce(
    coordinates: Int[Array | np.ndarray, "n axes"],
    features: Shaped[Array | np.ndarray, "n channels"],
    bounds: Bounds | None = None,
    *,
    reduce: Reduction = "sum",
    count: int | Int32[Array, ""] | None = None,
    capacity: int | None = None,
) -> Voxels:
    """Rows with the same coordinates become one.

    Args:
      coordinates: rows of (batch, *coordinate), repeated ones too.
      features: a row for each.
      bounds, capacity: as in `sites`.
      reduce: "sum", "mean", "max", or "first" in the order given.
      count: the rows in use, the first ones; None for all.

    Raises:
      TypeError: coordinates that are no integers.
      ValueError: shapes that do not fit, coordinates out of bounds, more rows than fit.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxsparse import activations as act
      >>> rows = jnp.array([[0, 3], [0, 1], [0, 3]])
      >>> act.coalesce(rows, jnp.array([[1.0], [2.0], [4.0]]), capacity=2).tensor.features
      Array([[2.],
             [5.]], dtype=float32)
    """
    if not jnp.issubdtype(coordinates.dtype, jnp.integer):
        raise TypeError(f"coordinates have dtype {coordinates.dtype}, need integers.")
    n = len(coordinates)
    count = n if count is None else count
    require((count >= 0) & (count <= n), "count={count} of {n} rows.", count=count, n=n)
    meant = np.arange(n) < count
    if bounds is None:
        if not is_known(coordinates, count):
            raise ValueError("coordinates whose values are traced need bounds=Bounds(...).")
        bounds = smallest_bounds(np.asarray(coordinates)[: int(count)].astype(np.int64))
    _check_rank(coordinates.shape[1] - 1, bounds)
    if is_known(coordinates):  # before they are cut to int32
        lower, upper = np.array((0, *bounds.lower)), np.array((bounds.batch, *bounds.upper))
        wide = np.asarray(coordinates).astype(np.int64)
        inside = np.all((wide >= lower) & (wide < upper), axis=1)
    else:
        inside = bounds.contains(bounds.relative(jnp.asarray(coordinates)))
    relative = bounds.relative(jnp.asarray(coordinates))
    keys = bounds.keys(list(relative.T))
    return _reduce(keys, features, meant, jnp.asarray(inside), bounds, reduce, capacity, count <= n)


def _check_rank(rank, bounds):
    if bounds.rank != rank:
        raise ValueError(f"rows have {rank} spatial axes, {bounds} has {bounds.rank}.")


def _reduce(keys, features, meant, inside, bounds, reduce, capacity, ok):
    features = jnp.asarray(features)
    if reduce not in _REDUCTIONS:
        raise ValueError(f"reduce={reduce!r} is none of {', '.join(_REDUCTIONS)}.")
    if features.ndim != 2 or features.shape[0] != keys.shape[0] or meant.shape != keys.shape:
        raise ValueError(
            f"features of shape {features.shape} and {meant.shape} marks for {keys.shape[0]} rows: "
            "needs (rows, channels) and a mark for each."
        )
    beyond = jnp.sum(meant & ~inside)
    require(
        beyond == 0,
        f"{{n}} rows lie outside {bounds}; widen the bounds, or leave them out.",
        n=beyond,
    )
    keys = jnp.where(meant & inside, keys, NOWHERE)
    capacity = max(1, keys.shape[0]) if capacity is None else capacity
    some = keys if keys.size else jnp.full(1, NOWHERE)
    where = distinct_sites(some, bounds, capacity, ok & (beyond == 0))
    require_room(where.needed, where.capacity)
    values, rows, counts = _by_segment(keys, features, where.capacity, reduce)
    return Voxels(flagged(values, where, where.ok), rows, counts)


@partial(jax.jit, static_argnums=(2, 3))
def _by_segment(keys, features, capacity, reduce):
    ordered, order = sorted_places(keys)
    first = jnp.concatenate([jnp.ones(1, bool), ordered[1:] != ordered[:-1]])[: keys.size]
    rank = jnp.cumsum(first, dtype=jnp.int32) - 1
    rank = jnp.where(ordered != NOWHERE, jnp.minimum(rank, capacity), capacity)
    rows = jnp.zeros_like(order).at[order].set(rank)
    segments = partial(
        jax.ops.segment_sum, segment_ids=rank, num_segments=capacity + 1, indices_are_sorted=True
    )
    counts = segments(jnp.ones_like(rank))[:-1]
    if reduce == "first":
        kept = jnp.where(first, rank, capacity)
        values = jnp.zeros((capacity, features.shape[1]), features.dtype)
        return values.at[kept].set(features[order], mode="drop"), rows, counts
    # What goes nowhere may hold NaN: it must not reach a gradient by way of a product with 0.
    sorted_features = jnp.where((rank < capacity)[:, None], features[order], 0)
    if reduce == "max":
        values = jax.ops.segment_max(sorted_features, rank, capacity + 1, indices_are_sorted=True)[
            :-1
        ]
        return jnp.where(counts[:, None] > 0, values, 0), rows, counts
    floats = jnp.issubdtype(features.dtype, jnp.floating)
    if reduce == "sum" and not floats:
        whole = jax.eval_shape(jnp.sum, features).dtype  # 8 bits do not hold a sum of many
        return segments(sorted_features.astype(whole))[:-1], rows, counts
    values = segments(sorted_features.astype(sum_dtype(features)))[:-1]
    if reduce == "mean":
        values = values / jnp.maximum(counts, 1).astype(values.dtype)[:, None]
    return values.astype(features.dtype) if floats else values, rows, counts
