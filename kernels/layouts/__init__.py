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
| CSRLayout | (nnz,) | indptr (K + 1,) int32, columns (nnz,) int32, or uint16 up to N = 65536 |
| BitmapLayout | (nnz,) | starts int32, bits uint32 (see `BitmapLayout`) |

Block column j holds values[indptr[j]:indptr[j + 1]], its rows strictly
increasing. Entries from indptr[-1] on are room to spare: row 0, value 0. So are
the values of a bitmap from starts[-1] on.

A layout also decodes the arrays that it describes, in jax.lax, one file a storage: the
products, lookups and gradients that have no kernel of their own ask it (see `Layout`).
"""

from jaxsparse.kernels.layouts.base import Layout
from jaxsparse.kernels.layouts.bitmaps import CHUNK, BitmapLayout
from jaxsparse.kernels.layouts.blocks import BlockLayout, CSCLayout
from jaxsparse.kernels.layouts.nm import NMLayout
from jaxsparse.kernels.layouts.rows import CSRLayout

__all__ = ["CHUNK", "BitmapLayout", "BlockLayout", "CSCLayout", "CSRLayout", "Layout", "NMLayout"]
