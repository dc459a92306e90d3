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
      values, indptr and rows by name; and a function that stores other tiles in the same places.
    """
    # Slices of a stack keep different numbers; the largest makes room for all.
    # A weight that keeps nothing has room for one: orbax stores no empty array.
    room = max(1, *(int(k.sum()) for k in kept))
    index = [column_index(k, room) for k in kept]
    indptr, rows = (np.stack([i[part] for i in index]) for part in (0, 1))
    columns = np.stack([expand_columns(i, room) for i in indptr])
    spare = columns == kept.shape[2]
    stack = np.arange(len(kept))[:, None]

    def place(tiles, xp):
        if not tiles.size:  # no tile to fill the room for one with
            return xp.zeros((len(kept), room, *tiles.shape[3:]), tiles.dtype)
        values = tiles[stack, rows, np.where(spare, 0, columns)]
        return xp.where(
            spare.reshape(*spare.shape, *[1] * (values.ndim - 2)),
            xp.zeros((), values.dtype),
            values,
        )

    return {"values": place(tiles, xp), "indptr": indptr, "rows": rows}, place


def column_index(kept: np.ndarray, room: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Compresses a boolean grid by columns.

    Args:
      kept: of shape (rows, columns).
      room: length of the returned rows, at least as many as are kept.

    Returns:
      indptr (columns + 1,) and rows (room,), int32. Column j keeps
      rows[indptr[j]:indptr[j + 1]], ascending; what is over is 0.

    Raises:
      ValueError: more are kept than pointers of 32 bits can count.
    """
    check_count(kept)
    _, rows = np.nonzero(kept.T)
    indptr = np.zeros(kept.shape[1] + 1, np.int32)
    np.cumsum(kept.sum(axis=0), out=indptr[1:])
    padded = np.zeros(len(rows) if room is None else room, np.int32)
    padded[: len(rows)] = rows
    return indptr, padded


def expand_columns(indptr: np.ndarray, room: int) -> np.ndarray:
    """The column of every entry, and the number of columns for spare room."""
    columns = np.full(room, len(indptr) - 1, np.int32)
    columns[: indptr[-1]] = np.repeat(np.arange(len(indptr) - 1, dtype=np.int32), np.diff(indptr))
    return columns


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


def check_columns(indptr: np.ndarray, rows: np.ndarray, grid: tuple[int, int], unit: str) -> None:
    """Raises ValueError unless the index describes a (rows, columns) grid of `unit`s."""
    down, across = grid
    indptr, rows = indptr.astype(np.int64), rows.astype(np.int64)
    if indptr.shape != (across + 1,):
        raise ValueError(
            f"indptr has shape {indptr.shape}, needs ({across + 1},) for {across} columns "
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
        raise ValueError(f"indptr falls from {indptr[j]} to {indptr[j + 1]} after column {j}")
    outside = np.flatnonzero((rows < 0) | (rows >= max(down, 1)))  # spare room says 0
    if len(outside):
        e = outside[0]
        raise ValueError(f"rows[{e}] = {rows[e]} is outside the {down} rows of {unit}s")
    used = rows[: indptr[-1]]
    rises = np.ones(len(used), bool)
    rises[1:] = np.diff(used) > 0
    rises[indptr[:-1][indptr[:-1] < len(used)]] = True
    if not rises.all():
        e = np.flatnonzero(~rises)[0]
        raise ValueError(
            f"rows[{e}] = {used[e]} does not come after rows[{e - 1}] = {used[e - 1]} of the same "
            f"column: the rows of a column are strictly increasing"
        )
