"""2:4 weights in the form that NVIDIA's sparse tensor cores read, as CUTLASS lays it out.

The sparse operand of a product is its left one: A = Wᵀ of shape (N, K), of which two of
every four consecutive entries of a row are kept. It becomes

    operand    (N, K/2), the entries kept, row-major
    metadata   where they were, four bits a group

A group that keeps the positions p < q of 0..3 has the code p | q << 2, of which six
occur. Metadata words hold the codes of a row's consecutive groups, lowest bits first:
16 bits (16 entries of A) beside 16-bit values, 32 bits (32 entries) beside int8. These
are the operands of `mma.sp`. For `ldmatrix` to bring every thread its own words,
CUTLASS then permutes the matrix of words, of (N, C) words:

    r' = ⌊r/G⌋G + (r mod 8) G/8 + ⌊(r mod G)/8⌋,  G = 32 rows (of 16 bits) or 16 (of 32)

and in every 2x2 square of (r', c) the two words off the diagonal change places. The
result lies in memory as pairs of columns, (C/2, N, 2).

Sources: PTX ISA, "Sparse matrix storage" of mma.sp; CUTLASS's `reorder_meta`
(tools/util/include/cutlass/util/host_reorder.h) and its layout ColumnMajorInterleaved<2>.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Num, UInt, UInt8

from jaxsparse.kernels.layouts import NMLayout

_REFUSED = 255


class Operand(NamedTuple):
    """The sparse operand of a product.

    Attributes:
      values: (N, K/2), bfloat16, float16 or int8.
      metadata: (C/2, N, 2), of uint16 (C = K/16) or, for int8, uint32 (C = K/32).
    """

    values: Num[Array, "N half"]
    metadata: UInt[Array, "pairs N 2"]


def code(mask: int) -> int:
    """The four bits of a group that keeps the positions whose bits `mask` has.

    A group that keeps fewer than two fills up with the lowest of the others, which
    store zero.

    Raises:
      ValueError: It keeps more than two.
    """
    kept = [i for i in range(4) if mask >> i & 1]
    if len(kept) > 2:
        raise ValueError(f"a group keeps the positions {kept}: 2:4 has room for two of them")
    others = [i for i in range(4) if i not in kept]
    low, high = sorted((kept + others)[:2])
    return low | high << 2


CODES = np.array([code(m) if m.bit_count() <= 2 else _REFUSED for m in range(16)], np.uint8)


def to_cutlass(
    values: Num[Array, "rows N"], words: UInt[Array, "words N"], *, layout: NMLayout
) -> Operand:
    """The weight of an NMSparse array as an operand for CUTLASS.

    Args:
      values: (K/4 * n, N), bfloat16, float16 or int8.
      words: the packed positions.
      layout: 2:4 or 1:4; K a multiple of 32 (64 for int8), N of 32.

    Raises:
      ValueError: the layout or dtype has no such form.
    """
    word = _word(values.dtype)
    _check(layout, word)
    groups = layout.padded[0] // 4
    shape = groups, layout.n, layout.shape[1]
    places = layout.positions(words).reshape(shape)
    here = places[:, :, None] == jnp.arange(4, dtype=places.dtype)[:, None]
    dense = layout.todense(values, words).reshape(groups, 4, -1)
    masks = jnp.sum(jnp.any(here, 1) << jnp.arange(4, dtype=jnp.uint8)[:, None], 1)
    codes = jnp.asarray(CODES)[masks]
    stored = jnp.take_along_axis(dense, _positions(codes), axis=1)
    return Operand(stored.reshape(-1, layout.shape[1]).T, reorder(_pack(codes.T, word)))


def from_cutlass(
    operand: Operand, *, layout: NMLayout
) -> tuple[Num[Array, "rows N"], UInt[Array, "words N"]]:
    """Undoes `to_cutlass`: values and packed positions for a 2:4 layout.

    Raises:
      ValueError: the layout is not 2:4 of every column, or the metadata, where
        concrete, has a code that no 2:4 group has.
    """
    if (layout.n, layout.m, layout.columns) != (2, 4, 1):
        raise ValueError(f"CUTLASS's operands are 2:4 of every column, not {layout}")
    _check(layout, _word(operand.values.dtype))
    codes = _unpack(restore(operand.metadata)).T
    if not isinstance(codes, Tracer):
        wrong = np.argwhere(~np.isin(np.asarray(codes), CODES))
        if len(wrong):
            g, c = wrong[0]
            raise ValueError(
                f"group {g} of column {c} has the code {int(codes[g, c]):04b}; a 2:4 group has "
                f"{', '.join(f'{v:04b}' for v in np.unique(CODES[CODES != _REFUSED]))}"
            )
    places = _positions(codes).reshape(layout.values_shape)
    return operand.values.T, jnp.asarray(layout.encode(places))


def reorder(words: UInt[Array, "N C"]) -> UInt[Array, "pairs N 2"]:
    """Words of metadata in the order in which CUTLASS keeps them in memory."""
    rows, cols = words.shape
    source = _sources(rows, cols, words.dtype)
    return words.reshape(-1)[source].reshape(rows, cols // 2, 2).swapaxes(0, 1)


def restore(metadata: UInt[Array, "pairs N 2"]) -> UInt[Array, "N C"]:
    """Undoes `reorder`."""
    pairs, rows, _ = metadata.shape
    source = _sources(rows, 2 * pairs, metadata.dtype)
    flat = metadata.swapaxes(0, 1).reshape(-1)
    return flat[np.argsort(source)].reshape(rows, -1)


def _sources(rows: int, cols: int, dtype) -> np.ndarray:
    """For every place of the reordered matrix, the place its word comes from."""
    group = 32 if dtype.itemsize == 2 else 16
    r, c = np.meshgrid(np.arange(rows), np.arange(cols), indexing="ij")
    to_row = r // group * group + r % 8 * (group // 8) + r % group // 8
    # Off the diagonal of a 2x2 square one step down and one left, or back.
    step = (c % 2) - (to_row % 2)
    source = np.empty(rows * cols, np.int64)
    source[((to_row + step) * cols + c - step).reshape(-1)] = np.arange(rows * cols)
    return source


def _word(dtype) -> np.dtype:
    name = jnp.dtype(dtype).name
    if name in ("bfloat16", "float16"):
        return np.dtype(np.uint16)
    if name == "int8":
        return np.dtype(np.uint32)
    raise ValueError(f"sparse tensor cores take 2:4 in bfloat16, float16 or int8, not {name}")


def _check(layout: NMLayout, word: np.dtype) -> None:
    if layout.m != 4 or layout.n > 2:
        raise ValueError(f"at most two of every four are kept in this form, not {layout}")
    (k, n), deep = layout.shape, 16 * word.itemsize
    if k % deep or n % 32:
        raise ValueError(
            f"a weight of shape {layout.shape} is not made of whole tiles: its inputs must be a "
            f"multiple of {deep}, its outputs of 32"
        )


def _positions(codes: UInt8[Array, "G N"]) -> Num[Array, "G 2 N"]:
    return jnp.stack([codes & 3, codes >> 2], axis=1).astype(jnp.int32)


def _pack(codes: UInt8[Array, "N G"], word: np.dtype) -> UInt[Array, "N C"]:
    codes = codes.reshape(codes.shape[0], -1, 2 * word.itemsize).astype(word)
    return jnp.sum(codes << _shifts(word), axis=2, dtype=word)


def _unpack(words: UInt[Array, "N C"]) -> UInt8[Array, "N G"]:
    codes = (words[:, :, None] >> _shifts(words.dtype)) & words.dtype.type(15)
    return codes.reshape(words.shape[0], -1).astype(jnp.uint8)


def _shifts(word) -> np.ndarray:
    return np.arange(2 * word.itemsize, dtype=word) * word.type(4)
