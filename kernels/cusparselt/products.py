"""cuSPARSELt's compressed form of a weight, and products by it."""

import jax.numpy as jnp
from jaxtyping import Array, Num, UInt, UInt8

from jaxsparse.kernels import ffi
from jaxsparse.kernels.cusparselt import library
from jaxsparse.kernels.layouts import NMLayout
from jaxsparse.kernels.walks import pad_rows

# Of x and W: of y, and how many inputs and outputs go together.
_RESULTS = {"bfloat16": "bfloat16", "float16": "float16", "int8": "int32"}
_MULTIPLES = {"bfloat16": 16, "float16": 16, "int8": 32}
_BATCH = 16


def unsupported_shape(shape: tuple[int, int], dtype) -> str | None:
    """The reason why cuSPARSELt does not take a weight of this shape and dtype, or None."""
    multiple = _MULTIPLES.get(jnp.dtype(dtype).name)
    if multiple is None:
        return f"weights are {', '.join(_RESULTS)}, not {jnp.dtype(dtype)}"
    if shape[0] % multiple or shape[1] % multiple:
        return (
            f"inputs and outputs are multiples of {multiple} in {jnp.dtype(dtype)}, the weight's "
            f"shape is {shape}"
        )
    return None


def compressed_bytes(shape: tuple[int, int], dtype) -> int:
    """Bytes of the compressed form: half of the entries, and two bits for each of those."""
    kept = shape[0] * shape[1] // 2
    return kept * jnp.dtype(dtype).itemsize + kept // 4


def compress(
    values: Num[Array, "rows N"], words: UInt[Array, "words N"], *, layout: NMLayout
) -> UInt8[Array, "bytes"]:
    """The compressed form of a weight, for `multiply` on the same device and version.

    Args:
      values: (K/4 * n, N), bfloat16, float16 or int8.
      words: the packed positions.
      layout: 2:4 or 1:4.

    Returns:
      What cuSPARSELt's `cusparseLtSpMMACompress2` makes of Wᵀ.

    Raises:
      ValueError: cuSPARSELt does not take this dtype, shape or layout.
      RuntimeError: it cannot be called from here.
    """
    if layout.m != 4 or layout.n > 2:
        raise ValueError(f"cuSPARSELt takes 2:4 and 1:4, not {layout}.")
    if reason := unsupported_shape(layout.shape, values.dtype):
        raise ValueError(f"cuSPARSELt cannot compress this weight: {reason}.")
    transposed = layout.todense(values, words).T
    shape = (compressed_bytes(layout.shape, values.dtype),)
    return _call("compress", shape, jnp.uint8, transposed)


def multiply(
    x: Num[Array, "M K"],
    compressed: UInt8[Array, "bytes"],
    *,
    outputs: int,
    algorithm: int | None = None,
) -> Num[Array, "M N"]:
    """x @ W for a compressed W of the same dtype.

    Args:
      x: bfloat16, float16 or int8.
      compressed: from `compress`.
      outputs: N.
      algorithm: the number of one of cuSPARSELt's; None for its own choice.

    Returns:
      y, of x's dtype, or int32 for int8.

    Raises:
      ValueError: shapes or dtypes do not fit.
      RuntimeError: it cannot be called from here.
    """
    shape = x.shape[1], outputs
    if reason := unsupported_shape(shape, x.dtype):
        raise ValueError(f"cuSPARSELt cannot multiply x of shape {x.shape}: {reason}.")
    needed = (compressed_bytes(shape, x.dtype),)
    if compressed.dtype != jnp.uint8 or compressed.shape != needed:
        raise ValueError(
            f"a compressed weight of shape {shape} in {x.dtype} is uint8 {needed}, this is "
            f"{compressed.dtype} {compressed.shape}."
        )
    rows = x.shape[0]
    x = pad_rows(x, _BATCH)
    number = -1 if algorithm is None else algorithm
    dtype = _RESULTS[x.dtype.name]
    y = _call("multiply", (x.shape[0], outputs), dtype, x, compressed, algorithm=number)
    return y[:rows]


def _call(name: str, shape, dtype, *operands: Array, **attributes: int) -> Array:
    library.register()
    return ffi.call(f"jaxsparse_cusparselt_{name}", shape, dtype, *operands, **attributes)
