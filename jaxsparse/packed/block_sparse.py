"""Weights in blocks, ordered by block column."""

import dataclasses
from typing import Any

import numpy as np

from jaxsparse.kernels.layouts import BlockLayout
from jaxsparse.packed import indices
from jaxsparse.packed.base import Packed
from jaxsparse.packed.held import hold
from jaxsparse.packed.storages import register
from jaxsparse.patterns.groups import Block


@register
@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class BlockSparse(Packed):
    """A weight in blocks of bk inputs by bn outputs, ordered by block column (BSC).

    Attributes:
      values: (nnz, bk, bn). Blocks at the lower and right edge may reach over it.
      indptr: (ceil(N/bn) + 1,) int32; block column j is
        values[indptr[j]:indptr[j + 1]], and from indptr[-1] on there is only spare room.
      rows: (nnz,) int32, the block rows, strictly increasing within a column.
      block: (bk, bn).
    """

    values: Any
    indptr: Any
    rows: Any
    block: tuple[int, int]
    view: Any
    scales: Any = None
    held: Any = None
    stores = Block
    index_arrays = indices.BY_COLUMN

    @property
    def layout(self) -> BlockLayout:
        return BlockLayout(self.matrix_shape, self.block, self.rows.shape[-1])

    @classmethod
    def store(cls, flat, kept, xp, *, pattern, columns):
        del columns
        bk, bn = block = pattern.rows, pattern.columns
        _, k, n = flat.shape
        padding = (0, 0), (0, -k % bk), (0, -n % bn)
        grid = -(-k // bk), -(-n // bn)

        def tiles(array, pad):
            array = pad(array, padding).reshape(len(array), grid[0], bk, grid[1], bn)
            return array.transpose(0, 1, 3, 2, 4)

        lost, some = tiles(~kept, np.pad), tiles(kept, np.pad).any((3, 4))
        arrays, place = indices.by_column(tiles(flat, xp.pad), some, xp)
        return cls, arrays | hold(place(lost, np)), {"block": block}

    @classmethod
    def draw(cls, key, view, pattern, sparsity):
        block = pattern.rows, pattern.columns
        down, across = (-(-s // b) for s, b in zip(view.matrix_shape, block, strict=True))
        drawn = indices.draw_places(key, (down, across), sparsity)
        return cls(None, *indices.columns_of_places(drawn, (down, across)), block, view)

    def check_index(self, indptr, rows):
        indices.check_columns(
            indptr, rows, self.layout.grid, f"{self.block[0]}x{self.block[1]} block"
        )

    def _describe(self):
        return f"[{self.block[0]}x{self.block[1]}, {self.density:.1%}]"
