"""Single weights: under a bit for every place, or where few are kept by column or by input."""

import dataclasses
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np

from jaxsparse.kernels.layouts import CHUNK, BitmapLayout, CSCLayout, CSRLayout
from jaxsparse.packed import indices
from jaxsparse.packed.base import SHORT_ROWS, Packed
from jaxsparse.packed.storages import register
from jaxsparse.patterns.base import Unstructured

BITMAP_DENSITY = 0.2  # single weights at least this dense have bits instead of rows


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
    """

    values: Any
    indptr: Any
    rows: Any
    view: Any
    scales: Any = None
    on_demand = Unstructured
    index_arrays = indices.BY_COLUMN

    @property
    def layout(self) -> CSCLayout:
        return CSCLayout(self.matrix_shape, self.rows.shape[-1])

    @classmethod
    def store(cls, flat, kept, xp, *, pattern, columns):
        del pattern, columns
        arrays, _ = indices.by_column(flat, kept, xp)
        if flat.shape[1] <= SHORT_ROWS:
            arrays["rows"] = arrays["rows"].astype(np.uint16)
        return cls, arrays, {}

    @classmethod
    def draw(cls, key, view, pattern, sparsity):
        drawn = indices.draw_places(key, view.matrix_shape, sparsity)
        indptr, rows = indices.columns_of_places(drawn, view.matrix_shape)
        short = view.matrix_shape[0] <= SHORT_ROWS
        return cls(None, indptr, rows.astype(jnp.uint16) if short else rows, view)

    def check_index(self, indptr, rows):
        indices.check_columns(indptr, rows, self.matrix_shape, "weight")


@register
@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class CSR(Packed):
    """A weight in compressed sparse rows: for every input the outputs that it reaches.

    As large as `CSC`, and made for products of one to eight rows with zeros in them, such as
    what a relu leaves: the native kernels read the weights of the other inputs only. On more
    rows, and in gradients, it is multiplied as any other.

    `pack(weight, Unstructured(), storage=CSR)` makes one.

    Attributes:
      values: (nnz,).
      indptr: (K + 1,) int32; input i has values[indptr[i]:indptr[i + 1]], and
        from indptr[-1] on there is only spare room.
      columns: (nnz,) int32, or uint16 where N is at most 65536; strictly
        increasing within an input.
    """

    values: Any
    indptr: Any
    columns: Any
    view: Any
    scales: Any = None
    on_demand = Unstructured
    numbered = 1
    index_arrays: ClassVar = {"indptr": ("int32",), "columns": ("int32", "uint16")}

    @property
    def layout(self) -> CSRLayout:
        return CSRLayout(self.matrix_shape, self.columns.shape[-1])

    @classmethod
    def store(cls, flat, kept, xp, *, pattern, columns):
        turned = flat.swapaxes(1, 2), kept.swapaxes(1, 2)
        _, arrays, static = CSC.store(*turned, xp, pattern=pattern, columns=columns)
        arrays["columns"] = arrays.pop("rows")
        return cls, arrays, static

    def check_index(self, indptr, columns):
        inputs, outputs = self.matrix_shape
        turned = outputs, inputs
        indices.check_columns(indptr, columns, turned, "weight", line="input", place="column")


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
    """

    values: Any
    starts: Any
    bits: Any
    nnz: int
    view: Any
    scales: Any = None
    stores = Unstructured
    index_arrays: ClassVar = {"starts": ("int32",), "bits": ("uint32",)}

    @property
    def layout(self) -> BitmapLayout:
        return BitmapLayout(self.matrix_shape, self.nnz)

    @classmethod
    def store(cls, flat, kept, xp, *, pattern, columns):
        room = max(int(k.sum()) for k in kept)
        if not _pays(room, flat.shape[1:]):
            return CSC.store(flat, kept, xp, pattern=pattern, columns=columns)
        layout = BitmapLayout(flat.shape[1:], room)
        parts = []
        for matrix, mask in zip(flat, kept, strict=True):
            indices.check_count(mask)
            values = layout.by_strips(matrix)[layout.by_strips(mask)]
            parts.append((xp.pad(values, (0, room - len(values))), *layout.encode(mask)))
        values, starts, bits = zip(*parts, strict=True)
        index = {"starts": np.stack(starts), "bits": np.stack(bits)}
        return cls, {"values": xp.stack(values)} | index, {"nnz": room}

    @classmethod
    def draw(cls, key, view, pattern, sparsity):
        shape = view.matrix_shape
        kept = indices.count(shape, sparsity)
        if not _pays(kept, shape):
            return CSC.draw(key, view, pattern, sparsity)
        drawn = indices.draw_places(key, shape, sparsity)
        mask = jnp.zeros(shape[0] * shape[1], bool).at[drawn].set(True).reshape(shape)
        starts, bits = BitmapLayout(shape, kept).encode(mask)
        return cls(None, starts, bits, kept, view)

    def check_index(self, starts, bits):
        layout = self.layout
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
            if not part:
                raise ValueError(f"starts[0] = {starts[0]}, it must be 0")
            strip, chunk = divmod(part - 1, layout.chunks)
            raise ValueError(
                f"starts[{part}] = {starts[part]}, but {counted[part]} bits come up to strip "
                f"{strip}, column {min(CHUNK * (chunk + 1), layout.shape[1]) - 1}"
            )
        if counted[-1] > layout.nnz:
            raise ValueError(f"bits name {counted[-1]} weights, {layout.nnz} are stored")


def _pays(nnz: int, shape: tuple[int, int]) -> bool:
    """Whether single weights are better stored as `Bitmap` than as `CSC`."""
    return nnz > 0 and nnz >= BITMAP_DENSITY * (shape[0] * shape[1])
