"""Packed weights: pytrees which store what survived pruning, and where it was.

| array | stores | for |
|---|---|---|
| `BlockSparse` | blocks by block column, column pointers, block rows | 1x16 ... 128x128 |
| `NMSparse` | n of every m inputs, positions of ceil(log2 m) bits | 2:4, 1:4, 4:8 |
| `Bitmap` | single weights, a bit for every place | unstructured, density .2 and more |
| `CSC` | single weights by column, column pointers, rows | unstructured below |

Only `values` (and the scales of int8 values) are numbers to learn; the rest is
the structure. `jax.grad` with respect to `packed.values` trains a packed weight
as it is, and `split_packed` takes a whole tree of parameters apart for that.

A packed weight remembers the axes of the leaf it came from, so that a
convolution or an attention kernel unpacks to its own shape. Stacked kernels
(under `nn.scan`) are packed slice by slice; every array then has the stack's
axes in front, and `jax.lax.scan` and `jax.vmap` take slices as usual.
"""

import dataclasses
from typing import Any

from jaxsparse import indices
from jaxsparse.kernels.layouts import BitmapLayout, BlockLayout, CSCLayout, NMLayout
from jaxsparse.packed import Packed, register


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
      view: the shape (K, N), or the View of a kernel of another shape.
      scales: (N,), for int8 values: W = values * scales.
      held: (ceil(values / 32),) uint32, a bit for every value that was masked within a
        block and stays zero in training; None where there is none.

    Raises:
      ValueError: for indices out of range or out of order, and shapes that do
        not fit (checked where the arrays are concrete).
    """

    values: Any
    indptr: Any
    rows: Any
    block: tuple[int, int]
    view: Any
    scales: Any = None
    held: Any = None
    array_names = ("values", "indptr", "rows", "scales", "held")

    @property
    def layout(self) -> BlockLayout:
        return BlockLayout(self.matrix_shape, self.block, self.rows.shape[-1])

    def _check_index(self, indptr, rows):
        indices.check_columns(
            indptr, rows, self.layout.grid, f"{self.block[0]}x{self.block[1]} block"
        )

    def _describe(self):
        return f"[{self.block[0]}x{self.block[1]}, {self.density:.1%}]"


@register
@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class CSC(Packed):
    """A weight in compressed sparse columns.

    Attributes:
      values: (nnz,).
      indptr: (N + 1,) int32; column j is values[indptr[j]:indptr[j + 1]], and
        from indptr[-1] on there is only spare room.
      rows: (nnz,) int32, or uint16 where K is at most 65536; strictly
        increasing within a column.
      view: the shape (K, N), or the View of a kernel of another shape.
      scales: (N,), for int8 values: W = values * scales.

    Raises:
      ValueError: for indices out of range or out of order, and shapes that do
        not fit (checked where the arrays are concrete).
    """

    values: Any
    indptr: Any
    rows: Any
    view: Any
    scales: Any = None
    array_names = ("values", "indptr", "rows", "scales")

    @property
    def layout(self) -> CSCLayout:
        return CSCLayout(self.matrix_shape, self.rows.shape[-1])

    def _check_index(self, indptr, rows):
        indices.check_columns(indptr, rows, self.matrix_shape, "weight")


@register
@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Bitmap(Packed):
    """Single weights under a bit for every place.

    An eighth of a byte for every place of W, kept or not, where `CSC` takes two or
    four bytes for every weight kept: half of a bfloat16 kernel takes 9/16 of it.

    Attributes:
      values: (nnz,), by strip of 256 rows, then by column, then by row.
      starts: int32, where the values of every 64 columns of a strip begin; from
        starts[-1] on there is only spare room.
      bits: uint32 (strips, N, words); see `BitmapLayout`.
      nnz: how many values are stored; a structure without values knows it too.
      view: the shape (K, N), or the View of a kernel of another shape.
      scales: (N,), for int8 values: W = values * scales.

    Raises:
      ValueError: for bits outside the weight, starts that do not count them, and
        shapes that do not fit (checked where the arrays are concrete).
    """

    values: Any
    starts: Any
    bits: Any
    nnz: int
    view: Any
    scales: Any = None
    array_names = ("values", "starts", "bits", "scales")

    @property
    def layout(self) -> BitmapLayout:
        return BitmapLayout(self.matrix_shape, self.nnz)

    def _check_index(self, starts, bits):
        indices.check_bitmap(starts, bits, self.layout)


@register
@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class NMSparse(Packed):
    """A weight that keeps n of every m consecutive inputs.

    Attributes:
      values: (ceil(K/m) * n, N); row g*n + i is the i-th weight kept of group g.
      positions: uint32 (words, ceil(N/columns)); see `NMLayout` for the bits.
      n: weights stored in a group.
      m: inputs in a group.
      view: the shape (K, N), or the View of a kernel of another shape.
      columns: consecutive outputs that share their positions. With all of them,
        the product is one dense product with the columns of x it needs.
      scales: (N,), for int8 values: W = values * scales.
      held: (ceil(values / 32),) uint32, a bit for every value that was masked within a
        group and stays zero in training; None where there is none.

    Raises:
      ValueError: for positions out of range or named twice in a group, and
        shapes that do not fit (checked where the arrays are concrete).
    """

    values: Any
    positions: Any
    n: int
    m: int
    view: Any
    columns: int = 1
    scales: Any = None
    held: Any = None
    array_names = ("values", "positions", "scales", "held")

    @property
    def layout(self) -> NMLayout:
        return NMLayout(self.matrix_shape, self.n, self.m, self.columns)

    def _check_index(self, words):
        found = self.layout.decode(words)
        indices.check_positions(found, self.n, self.m)

    def _describe(self):
        return f"[{self.n}:{self.m}]"
