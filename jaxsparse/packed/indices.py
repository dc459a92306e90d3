"""Indices by column: built from masks and checked on the host, or drawn at random."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

MOST = 2**31 - 1  # what pointers of 32 bits count to
BY_COLUMN = {"indptr": ("int32",), "rows": ("int32", "uint16")}


def by_column(tiles: Any, kept: Any, xp: Any) -> tuple[dict[str, Any], Callable[[Any, Any], Any]]:
    """Compresses a stack of grids of tiles by columns.

    Args:
      tiles: (stack, rows, columns, *tile), by `xp`, numpy or jax.numpy.
      kept: bool (stack, rows, columns), on the host.

    Returns:
      By name values (stack, room, *tile), indptr (stack, columns + 1) and rows (stack, room),
      int32; and a function that stores other tiles in the same places. Column j keeps
      rows[indptr[j]:indptr[j + 1]], ascending; what is over is 0.

    Raises:
      ValueError: more are kept than pointers of 32 bits can count.
    """
    for mask in kept:
        check_count(mask)
    # Slices of a stack keep different numbers; the largest makes room for all.
    # A weight that keeps nothing has room for one: orbax stores no empty array.
    room = max(1, *(int(mask.sum()) for mask in kept))

    def place(tiles, xp):
        found = [t.swapaxes(0, 1)[mask.T] for t, mask in zip(tiles, kept, strict=True)]
        edge = [(0, 0)] * (found[0].ndim - 1)
        return xp.stack([xp.pad(f, [(0, room - len(f)), *edge]) for f in found])

    indptr = np.zeros((len(kept), kept.shape[2] + 1), np.int32)
    np.cumsum(kept.sum(axis=1), axis=1, out=indptr[:, 1:])
    rows = np.broadcast_to(np.arange(kept.shape[1], dtype=np.int32)[:, None], kept.shape)
    return {"values": place(tiles, xp), "indptr": indptr, "rows": place(rows, np)}, place


def check_count(kept: np.ndarray) -> None:
    """Raises ValueError where more are kept than pointers of 32 bits can count."""
    total = np.count_nonzero(kept)
    if total > MOST:
        raise ValueError(
            f"{total} entries of a {kept.shape} grid are kept, pointers count to {MOST}: "
            "split the weight, or prune more of it"
        )


def count(grid: tuple[int, int], sparsity: float) -> int:
    """How many entries of a grid stay at a sparsity: n - round(s n)."""
    size = grid[0] * grid[1]
    return size - round(sparsity * size)


def draw_places(key: jax.Array, grid: tuple[int, int], sparsity: float) -> jax.Array:
    """Flat numbers of the entries of a grid that stay, drawn uniformly, in no order."""
    return jax.random.permutation(key, grid[0] * grid[1])[: count(grid, sparsity)]


def columns_of_places(places: jax.Array, grid: tuple[int, int]) -> tuple[jax.Array, jax.Array]:
    """indptr and rows of entries numbered column by column."""
    down, across = grid
    places = jnp.sort(places).astype(jnp.int32)
    starts = jnp.arange(across + 1, dtype=jnp.int32) * down
    return jnp.searchsorted(places, starts).astype(jnp.int32), places % down


def check_columns(
    indptr: np.ndarray,
    rows: np.ndarray,
    grid: tuple[int, int],
    unit: str,
    line: str = "column",
    place: str = "row",
) -> None:
    """Raises ValueError unless the index describes a (rows, columns) grid of `unit`s.

    Errors call a column a `line` and a row a `place`.
    """
    down, across = grid
    indptr, rows = indptr.astype(np.int64), rows.astype(np.int64)
    if indptr.shape != (across + 1,):
        raise ValueError(
            f"indptr has shape {indptr.shape}, needs ({across + 1},) for {across} {line}s "
            f"of {unit}s"
        )
    if indptr[0] != 0 or indptr[-1] > len(rows):
        raise ValueError(
            f"indptr runs from {indptr[0]} to {indptr[-1]}; it must start at 0 and end at most at "
            f"the {len(rows)} {unit}s stored"
        )
    falls = np.flatnonzero(np.diff(indptr) < 0)
    if len(falls):
        j = falls[0]
        raise ValueError(f"indptr falls from {indptr[j]} to {indptr[j + 1]} after {line} {j}")
    outside = np.flatnonzero((rows < 0) | (rows >= max(down, 1)))  # spare room says 0
    if len(outside):
        e = outside[0]
        raise ValueError(f"{place}s[{e}] = {rows[e]} is outside the {down} {place}s of {unit}s")
    used = rows[: indptr[-1]]
    rises = np.ones(len(used), bool)
    rises[1:] = np.diff(used) > 0
    rises[indptr[:-1][indptr[:-1] < len(used)]] = True
    if not rises.all():
        e = np.flatnonzero(~rises)[0]
        raise ValueError(
            f"{place}s[{e}] = {used[e]} does not come after {place}s[{e - 1}] = {used[e - 1]} of "
            f"the same {line}: the {place}s within one {line} are strictly increasing"
        )
