"""The native kernels as functions of raw arrays, under `jax.jit` too.

W is the (K, N) weight. `shape` is its logical shape: blocks and groups at the
edge may reach beyond it, where x counts as zero and y is cut off. Every result
is float32. `scales`, where given, is (N,) and multiplies W's columns. Entries
from the end of indptr or starts on are room to spare: products ignore them,
the sampled product gives zero there.

| storage | values | index |
|---|---|---|
| block | (nnz, bk, bn), by block column, then row | indptr (ceil(N/bn) + 1,), rows (nnz,) |
| csc | (nnz,), by column, then row | indptr (N + 1,), rows (nnz,) uint16 or int32 |
| bitmap | (nnz,), by strip, column, row | starts, bits (strips, N, words): `BitmapLayout` |
| nm | (ceil(K/m) * n, N) | positions, `nm_bits` |
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt32

from jaxsparse.kernels.cpu import library

_X = (jnp.float32, jnp.bfloat16)
_VALUES = (jnp.float32, jnp.bfloat16, jnp.int8)


def supports(
    storage: str,
    *,
    x_dtype,
    values_dtype,
    block: tuple[int, int] | None = None,
    n: int | None = None,
    m: int | None = None,
) -> str | None:
    """Says whether the native kernels take a call.

    Args:
      storage: "block", "csc", "bitmap" or "nm".
      x_dtype: The activations' dtype.
      values_dtype: The stored weights' dtype.
      block: Rows and columns of a block, for "block".
      n: Entries kept in a group, for "nm".
      m: Entries in a group, for "nm".

    Returns:
      None where they do, else the reason why not.
    """
    if reason := library.available():
        return reason
    if jnp.dtype(x_dtype) not in _X:
        return f"x must be float32 or bfloat16, not {jnp.dtype(x_dtype).name}"
    if jnp.dtype(values_dtype) not in _VALUES:
        return f"weights must be float32, bfloat16 or int8, not {jnp.dtype(values_dtype).name}"
    if storage == "block":
        if block is None or block[0] < 1 or block[1] < 16 or block[1] % 16 or max(block) > 32768:
            return f"a block's columns must be a multiple of 16, got block={block}"
    elif storage == "nm":
        if m not in (2, 4, 8, 16) or n is None or not 1 <= n <= m:
            return f"groups must be n of 2, 4, 8 or 16 with n <= m, got {n}:{m}"
    elif storage not in ("csc", "bitmap"):
        return f"storage must be block, csc, bitmap or nm, got {storage!r}"
    return None


def nm_bits(m: int) -> tuple[int, int]:
    """Bits of a position in its group, and positions in a word of 32.

    Row r of column c is entry number r % n of group r // n; its position is
    (positions[r // per_word, c] >> bits * (r % per_word)) & (2**bits - 1).
    """
    bits = max(1, (m - 1).bit_length())
    return bits, 32 // bits


def block_dot(
    x: Float[Array, "M K"],
    values: Array,
    indptr: Int[Array, "columns"],
    indices: Int[Array, "nnz"],
    *,
    shape: tuple[int, int],
    scales: Float[Array, "N"] | None = None,
) -> Float[Array, "M N"]:
    """x @ W for W in blocks."""
    operands = _f32(x), values, _i32(indptr), _i32(indices), *_optional(scales)
    return _call("block_dot", (x.shape[0], shape[1]), *operands)


def block_dot_transposed(
    dy: Float[Array, "M N"],
    values: Array,
    indptr: Int[Array, "columns"],
    indices: Int[Array, "nnz"],
    *,
    shape: tuple[int, int],
    scales: Float[Array, "N"] | None = None,
) -> Float[Array, "M K"]:
    """dy @ Wᵀ for W in blocks."""
    operands = _scaled(_f32(dy), scales), values, _i32(indptr), _i32(indices)
    return _call("block_dot_transposed", (dy.shape[0], shape[0]), *operands)


def block_sampled(
    x: Float[Array, "M K"],
    dy: Float[Array, "M N"],
    indptr: Int[Array, "columns"],
    indices: Int[Array, "nnz"],
    *,
    block: tuple[int, int],
    scales: Float[Array, "N"] | None = None,
) -> Float[Array, "nnz bk bn"]:
    """xᵀ @ dy at the kept blocks."""
    operands = _f32(x), _scaled(_f32(dy), scales), _i32(indptr), _i32(indices)
    return _call("block_sampled", (indices.shape[0], *block), *operands)


def csc_dot(
    x: Float[Array, "M K"],
    values: Array,
    indptr: Int[Array, "columns"],
    indices: Array,
    *,
    shape: tuple[int, int],
    scales: Float[Array, "N"] | None = None,
) -> Float[Array, "M N"]:
    """x @ W for W in compressed columns."""
    operands = _f32(x), values, _i32(indptr), _rows(indices), *_optional(scales)
    return _call("csc_dot", (x.shape[0], shape[1]), *operands)


def csc_dot_transposed(
    dy: Float[Array, "M N"],
    values: Array,
    indptr: Int[Array, "columns"],
    indices: Array,
    *,
    shape: tuple[int, int],
    scales: Float[Array, "N"] | None = None,
) -> Float[Array, "M K"]:
    """dy @ Wᵀ for W in compressed columns."""
    operands = _scaled(_f32(dy), scales), values, _i32(indptr), _rows(indices)
    return _call("csc_dot_transposed", (dy.shape[0], shape[0]), *operands)


def csc_sampled(
    x: Float[Array, "M K"],
    dy: Float[Array, "M N"],
    indptr: Int[Array, "columns"],
    indices: Array,
    *,
    scales: Float[Array, "N"] | None = None,
) -> Float[Array, "nnz"]:
    """xᵀ @ dy at the kept entries."""
    operands = _f32(x), _scaled(_f32(dy), scales), _i32(indptr), _rows(indices)
    return _call("csc_sampled", indices.shape, *operands)


def bitmap_dot(
    x: Float[Array, "M K"],
    values: Array,
    starts: Int[Array, "parts"],
    bits: UInt32[Array, "strips N words"],
    *,
    shape: tuple[int, int],
    scales: Float[Array, "N"] | None = None,
) -> Float[Array, "M N"]:
    """x @ W for W under bitmaps."""
    operands = _f32(x), values, _i32(starts), bits, *_optional(scales)
    return _call("bitmap_dot", (x.shape[0], shape[1]), *operands)


def bitmap_dot_transposed(
    dy: Float[Array, "M N"],
    values: Array,
    starts: Int[Array, "parts"],
    bits: UInt32[Array, "strips N words"],
    *,
    shape: tuple[int, int],
    scales: Float[Array, "N"] | None = None,
) -> Float[Array, "M K"]:
    """dy @ Wᵀ for W under bitmaps."""
    operands = _scaled(_f32(dy), scales), values, _i32(starts), bits
    return _call("bitmap_dot_transposed", (dy.shape[0], shape[0]), *operands)


def bitmap_sampled(
    x: Float[Array, "M K"],
    dy: Float[Array, "M N"],
    starts: Int[Array, "parts"],
    bits: UInt32[Array, "strips N words"],
    *,
    nnz: int,
    scales: Float[Array, "N"] | None = None,
) -> Float[Array, "nnz"]:
    """xᵀ @ dy at the kept entries; `nnz` counts room to spare."""
    operands = _f32(x), _scaled(_f32(dy), scales), _i32(starts), bits
    return _call("bitmap_sampled", (nnz,), *operands)


def nm_dot(
    x: Float[Array, "M K"],
    values: Array,
    positions: UInt32[Array, "words N"],
    *,
    n: int,
    m: int,
    shape: tuple[int, int],
    scales: Float[Array, "N"] | None = None,
) -> Float[Array, "M N"]:
    """x @ W for W with n of every m entries of a column."""
    operands = _f32(x), values, positions, *_optional(scales)
    return _call("nm_dot", (x.shape[0], shape[1]), *operands, n=n, m=m)


def nm_dot_transposed(
    dy: Float[Array, "M N"],
    values: Array,
    positions: UInt32[Array, "words N"],
    *,
    n: int,
    m: int,
    shape: tuple[int, int],
    scales: Float[Array, "N"] | None = None,
) -> Float[Array, "M K"]:
    """dy @ Wᵀ for W with n of every m entries of a column."""
    operands = _scaled(_f32(dy), scales), values, positions
    return _call("nm_dot_transposed", (dy.shape[0], shape[0]), *operands, n=n, m=m)


def nm_sampled(
    x: Float[Array, "M K"],
    dy: Float[Array, "M N"],
    positions: UInt32[Array, "words N"],
    *,
    n: int,
    m: int,
    scales: Float[Array, "N"] | None = None,
) -> Float[Array, "rows N"]:
    """xᵀ @ dy at the kept entries."""
    operands = _f32(x), _scaled(_f32(dy), scales), positions
    rows = -(-x.shape[1] // m) * n
    return _call("nm_sampled", (rows, dy.shape[1]), *operands, n=n, m=m)


def _call(target: str, shape: tuple[int, ...], *operands: Array, **attributes: int) -> Array:
    library.register()
    result = jax.ShapeDtypeStruct(shape, jnp.float32)
    call = jax.ffi.ffi_call(f"jaxsparse_{target}", result, vmap_method="sequential")
    return call(*operands, **{name: np.int64(value) for name, value in attributes.items()})


def _f32(x: Array) -> Array:
    return jnp.asarray(x, jnp.float32)


def _i32(x: Array) -> Array:
    return jnp.asarray(x, jnp.int32)


def _rows(x: Array) -> Array:
    return x if x.dtype == jnp.uint16 else _i32(x)


def _optional(scales: Array | None) -> tuple[Array, ...]:
    return () if scales is None else (_f32(scales),)


def _scaled(x: Array, scales: Array | None) -> Array:
    return x if scales is None else x * scales.astype(jnp.float32)
