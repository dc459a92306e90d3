"""What a kernel must know of packed weights at compile time: shapes, never indices.

A weight is a matrix W of shape (K, N) with y = x @ W. A layout is hashable and
holds only sizes, so that two masks which keep equally many entries share one
compiled program. K and N need not be multiples of a block or group: the last
ones reach over the edge, and a kernel leaves out what they hold there.

| layout | values | index |
|---|---|---|
| BlockLayout | (nnz, bk, bn) | indptr (ceil(N/bn) + 1,), rows (nnz,), both int32 |
| NMLayout | (ceil(K/m) * n, N) | positions, uint32 words (see `NMLayout`) |
| CSCLayout | (nnz,) | indptr (N + 1,) int32, rows (nnz,) int32, or uint16 up to K = 65536 |
| BitmapLayout | (nnz,) | starts int32, bits uint32 (see `BitmapLayout`) |

Block column j holds values[indptr[j]:indptr[j + 1]], its rows strictly
increasing. Entries from indptr[-1] on are room to spare: row 0, value 0. So are
the values of a bitmap from starts[-1] on.
"""

import dataclasses
import math

CHUNK = 64  # columns of a bitmap whose values have a common start


@dataclasses.dataclass(frozen=True)
class BlockLayout:
    """Blocks of bk inputs by bn outputs, ordered by block column, then by row."""

    shape: tuple[int, int]
    block: tuple[int, int]
    nnz: int

    @property
    def grid(self) -> tuple[int, int]:
        """Blocks down and across."""
        return -(-self.shape[0] // self.block[0]), -(-self.shape[1] // self.block[1])

    @property
    def padded(self) -> tuple[int, int]:
        """(K, N) in whole blocks."""
        return self.grid[0] * self.block[0], self.grid[1] * self.block[1]

    @property
    def values_shape(self) -> tuple[int, int, int]:
        return (self.nnz, *self.block)

    @property
    def index_shapes(self) -> tuple[tuple[int, ...], ...]:
        return (self.grid[1] + 1,), (self.nnz,)

    @property
    def stored(self) -> int:
        """Weights stored, the multiplications one row of x costs."""
        return math.prod(self.values_shape)


@dataclasses.dataclass(frozen=True)
class _Singles:
    """Single weights, in some order."""

    shape: tuple[int, int]
    nnz: int

    @property
    def padded(self) -> tuple[int, int]:
        """(K, N): a single weight has no edge to reach over."""
        return self.shape

    @property
    def values_shape(self) -> tuple[int]:
        return (self.nnz,)

    @property
    def stored(self) -> int:
        return self.nnz


class CSCLayout(_Singles):
    """Single weights, ordered by column, then by row."""

    @property
    def index_shapes(self) -> tuple[tuple[int, ...], ...]:
        return (self.shape[1] + 1,), (self.nnz,)


class BitmapLayout(_Singles):
    """Single weights in strips of rows, ordered by strip, then by column, then by row.

    A strip has 256 rows, or as many as there are, in whole words of 32. `bits`, of
    shape (strips, N, strip / 32), has a bit for every place of W, the first row's
    lowest. `starts`, of shape (strips * chunks + 1,), says where the values of a
    chunk of 64 columns begin: those of chunk c in strip s are
    values[starts[i]:starts[i + 1]] with i = s * chunks + c.
    """

    @property
    def strip(self) -> int:
        """Rows of a strip."""
        return min(256, max(1, -(-self.shape[0] // 32)) * 32)

    @property
    def strips(self) -> int:
        return max(1, -(-self.shape[0] // self.strip))

    @property
    def chunks(self) -> int:
        return -(-self.shape[1] // CHUNK)

    @property
    def index_shapes(self) -> tuple[tuple[int, ...], ...]:
        return (self.strips * self.chunks + 1,), (self.strips, self.shape[1], self.strip // 32)


@dataclasses.dataclass(frozen=True)
class NMLayout:
    """n of every m consecutive inputs, chosen per `columns` consecutive outputs.

    Row r = g*n + i of the values holds the i-th weight of group g. Its input is
    g*m + position. A position takes `bits` = ceil(log2 m) bits, and a word of 32
    holds `per_word` of them: that of row r lies in word r // per_word, its lowest
    bit at bits * (r % per_word).
    """

    shape: tuple[int, int]
    n: int
    m: int
    columns: int = 1

    @property
    def bits(self) -> int:
        return max(1, (self.m - 1).bit_length())

    @property
    def per_word(self) -> int:
        return 32 // self.bits

    @property
    def padded(self) -> tuple[int, int]:
        """(K, N) in whole groups."""
        return -(-self.shape[0] // self.m) * self.m, self.shape[1]

    @property
    def values_shape(self) -> tuple[int, int]:
        return self.padded[0] // self.m * self.n, self.shape[1]

    @property
    def index_shapes(self) -> tuple[tuple[int, ...], ...]:
        words = -(-self.values_shape[0] // self.per_word)
        return ((words, -(-self.shape[1] // self.columns)),)

    @property
    def stored(self) -> int:
        return math.prod(self.values_shape)


Layout = BlockLayout | CSCLayout | BitmapLayout | NMLayout
