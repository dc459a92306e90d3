"""Checks of index arrays written by hand, before a kernel reads them.

Every product refuses the same: pointers that fall or end beyond what is stored, rows
outside the weight, rows that do not ascend in their column. Here the message names the
entry. (Bitmaps name no row twice or out of order, and every product counts their bits.
Positions of n:m always lie in their group; one that is named twice counts twice.)
"""

import numpy as np

from jaxsparse.kernels.cpu.products import nm_bits


def validate_block(indptr, indices, *, block: tuple[int, int], shape: tuple[int, int]) -> None:
    """Checks a block index.

    Args:
      indptr: (ceil(N/bn) + 1,) where every block column begins and the last ends.
      indices: Block rows, strictly ascending within a block column.
      block: Rows and columns of a block.
      shape: (K, N).

    Raises:
      ValueError: It is no index of a (K, N) weight; the message names the entry.
    """
    rows, columns = (-(-size // edge) for size, edge in zip(shape, block, strict=True))
    _compressed(indptr, indices, rows, columns, "block row", "block column")


def validate_csc(indptr, indices, *, shape: tuple[int, int]) -> None:
    """Checks the index of compressed columns; see `validate_block`."""
    _compressed(indptr, indices, *shape, "row", "column")


def validate_nm(positions, *, n: int, m: int, shape: tuple[int, int]) -> None:
    """Checks packed positions.

    Args:
      positions: (ceil(rows / per_word), N) uint32; see `nm_bits`.
      n: Entries kept in a group.
      m: Entries in a group.
      shape: (K, N).

    Raises:
      ValueError: They have another shape or dtype, or a position is m or more.
    """
    bits, per_word = nm_bits(m)
    positions = np.asarray(positions)
    rows = -(-shape[0] // m) * n
    expected = (-(-rows // per_word), shape[1])
    if positions.shape != expected or positions.dtype != np.uint32:
        raise ValueError(
            f"positions of a {n}:{m} weight of shape {shape} must be uint32 {expected}, "
            f"got {positions.dtype} {positions.shape}."
        )
    if m == 1 << bits:
        return
    shifts = bits * np.arange(per_word, dtype=np.uint32)[:, None]
    each = (positions[:, None] >> shifts) & np.uint32((1 << bits) - 1)
    each = each.reshape(-1, shape[1])[:rows]
    if (each >= m).any():
        row, column = np.argwhere(each >= m)[0]
        raise ValueError(
            f"position {each[row, column]} of row {row}, column {column} is not < {m}."
        )


def _compressed(indptr, indices, rows, columns, row_name, column_name):
    indptr, indices = np.asarray(indptr), np.asarray(indices).astype(np.int64)
    if indptr.shape != (columns + 1,):
        raise ValueError(
            f"indptr must have shape ({columns + 1},), one more than there are {column_name}s, "
            f"got {indptr.shape}."
        )
    if indptr[0] != 0 or indptr[-1] > indices.size or (np.diff(indptr) < 0).any():
        raise ValueError(
            f"indptr must rise from 0 to at most {indices.size}, the entries stored; "
            f"it runs from {indptr[0]} to {indptr[-1]}"
            + (" and falls in between." if (np.diff(indptr) < 0).any() else ".")
        )
    outside = (indices < 0) | (indices >= max(rows, 1))
    if outside.any():
        entry = np.argmax(outside)
        raise ValueError(f"{row_name} {indices[entry]} of entry {entry} is outside [0, {rows}).")
    rising = np.diff(indices) > 0
    rising[indptr[1:-1][(indptr[1:-1] > 0) & (indptr[1:-1] < indices.size)] - 1] = True
    rising[max(int(indptr[-1]) - 1, 0) :] = True
    if not rising.all():
        entry = int(np.argmin(rising))
        column = int(np.searchsorted(indptr, entry, side="right")) - 1
        raise ValueError(
            f"{row_name}s must ascend within a {column_name}: entries {entry} and {entry + 1} "
            f"of {column_name} {column} are {indices[entry]} and {indices[entry + 1]}."
        )
