"""Index arrays of packed weights: built from masks, and checked, on the host."""

import numpy as np

from jaxsparse.kernels.layouts import CHUNK, BitmapLayout

MOST = 2**31 - 1  # what pointers of 32 bits count to


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
    _check_count(kept)
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


def bitmap_index(kept: np.ndarray) -> tuple[np.ndarray, ...]:
    """Compresses a boolean grid (K, N) to bits, in the order of a `BitmapLayout`.

    Returns:
      starts and bits; and the row and the column of every entry kept, int64.

    Raises:
      ValueError: more are kept than pointers of 32 bits can count.
    """
    _check_count(kept)
    layout = BitmapLayout(kept.shape, 0)
    starts, bits = layout.encode(kept)
    strip, columns, rows = np.nonzero(layout.by_strips(kept))
    return starts, bits, strip * layout.strip + rows, columns


def _check_count(kept):
    total = np.count_nonzero(kept)
    if total > MOST:
        raise ValueError(
            f"{total} entries of a {kept.shape} grid are kept, pointers count to {MOST}: "
            "split the weight, or prune more of it"
        )


def group_positions(kept: np.ndarray, n: int, m: int) -> np.ndarray:
    """Positions of the n slots of every group of m rows.

    Args:
      kept: boolean, of shape (groups * m, columns), at most n true in a group.

    Returns:
      positions (groups * n, columns), int32, ascending in a group. One which keeps
      fewer than n fills up with others.
    """
    groups = kept.reshape(len(kept) // m, m, kept.shape[1])
    # Kept ones first, each part in order; then the chosen n back in order.
    chosen = np.sort(np.argsort(~groups, axis=1, kind="stable")[:, :n], axis=1)
    return chosen.astype(np.int32).reshape(len(groups) * n, kept.shape[1])


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


def check_bitmap(starts: np.ndarray, bits: np.ndarray, layout: BitmapLayout) -> None:
    """Raises ValueError unless the bits lie in the weight and the starts count them."""
    if layout.nnz < 1:
        raise ValueError("no values are stored; room for one, a zero, would work")
    if bits.dtype != np.uint32:
        raise ValueError(f"bits are {bits.dtype}, they must be uint32")
    strips = np.unpackbits(np.ascontiguousarray(bits).view(np.uint8), axis=2, bitorder="little")
    rows = layout.shape[0] - (layout.strips - 1) * layout.strip
    below = np.argwhere(strips[-1, :, rows:])
    if len(below):
        column, row = below[0]
        raise ValueError(
            f"bits name row {layout.shape[0] + row} of column {column}; the weight has "
            f"{layout.shape[0]} rows"
        )
    counted = np.concatenate([[0], np.cumsum(layout.chunk_counts(strips))])
    wrong = np.flatnonzero(starts != counted)
    if len(wrong):
        part = wrong[0]
        strip, chunk = divmod(part - 1, layout.chunks)
        raise ValueError(
            f"starts[{part}] = {starts[part]}, but {counted[part]} bits come up to strip {strip}, "
            f"column {min(CHUNK * (chunk + 1), layout.shape[1]) - 1}"
            if part
            else f"starts[0] = {starts[0]}, it must be 0"
        )
    if counted[-1] > layout.nnz:
        raise ValueError(f"bits name {counted[-1]} weights, {layout.nnz} are stored")


def check_positions(positions: np.ndarray, n: int, m: int) -> None:
    """Raises ValueError unless every group's n positions differ and lie below m."""
    groups = np.sort(positions.reshape(len(positions) // n, n, positions.shape[-1]), axis=1)
    if groups.size and groups.max() >= m:
        g, _, c = np.argwhere(groups >= m)[0]
        raise ValueError(
            f"group {g} of column {c} has a position {groups[g, :, c].max()}, m is {m}"
        )
    twice = np.argwhere(np.diff(groups, axis=1) == 0)
    if len(twice):
        g, _, c = twice[0]
        raise ValueError(f"group {g} of column {c} names a position twice: {groups[g, :, c]}")
