"""What the Hopper kernels take: shapes and dtypes, and the reason for what they do not."""

import jax.numpy as jnp

from jaxsparse.kernels.layouts import BlockLayout, NMLayout

_SIDES = (32, 64, 128)
_HALVES = ("bfloat16", "float16")
_BYTES = {"float8_e4m3fn": (*_HALVES, "float32"), "int8": ("int32", "float32")}
_RESULTS = {name: (*_HALVES, "float32") for name in _HALVES} | _BYTES
_DECODED = 64  # rows: beyond them a dense product reads the weights as often as it must
_DEEP = 512  # inputs: 16 words of positions
_WIDE = 64  # outputs


def blocks(op: str, layout: BlockLayout, x, values, out_dtype) -> str | None:
    """The reason why a product by blocks, or a sampled one, is not taken, or None."""
    if not set(layout.block) <= set(_SIDES):
        return f"block sides are 32, 64 or 128, these blocks are {layout.block}"
    if layout.padded != layout.shape:
        return f"blocks of {layout.block} do not divide the weight of shape {layout.shape}"
    if op == "sampled" and layout.block == (32, 32) and layout.shape[1] < 64:
        return f"wgmma computes 64 outputs at a time, this weight has {layout.shape[1]}"
    factors = x.dtype.name, values.dtype.name
    if op == "sampled":
        if factors not in [(name, name) for name in _HALVES]:
            return f"x and g are both bfloat16 or both float16, not {x.dtype} and {values.dtype}"
    elif factors not in [(n, n) for n in _RESULTS] + [(name, "int8") for name in _HALVES]:
        return (
            f"x and values are both {', '.join(_RESULTS)}, or the values int8 and x "
            f"{' or '.join(_HALVES)}; not {x.dtype} and {values.dtype}"
        )
    if jnp.dtype(out_dtype).name not in _RESULTS[x.dtype.name]:
        return f"results are {', '.join(_RESULTS[x.dtype.name])}, not {out_dtype}"
    return None


def groups(op: str, layout: NMLayout, x, values, out_dtype, transpose: bool) -> str | None:
    """The reason why a product by n of every m is not taken, or None."""
    if op == "sampled" or transpose:
        return "of n:m it takes x @ W only, neither x @ Wᵀ nor the sampled product"
    if (layout.n, layout.m, layout.columns) != (2, 4, 1):
        form = f"{layout.n}:{layout.m} with positions for {layout.columns} columns"
        return f"of n:m it takes 2:4 with positions for every column, this is {form}"
    if x.shape[0] > _DECODED:
        return f"of n:m it takes at most {_DECODED} rows, these are {x.shape[0]}"
    if layout.shape[0] % _DEEP or layout.shape[1] % _WIDE:
        return (
            f"2:4 weights need inputs in multiples of {_DEEP} and outputs of {_WIDE}, "
            f"this one's shape is {layout.shape}"
        )
    if x.dtype.name not in _HALVES or values.dtype.name not in (x.dtype.name, "int8"):
        return (
            f"x is {' or '.join(_HALVES)} and the values the same or int8, not "
            f"{x.dtype} and {values.dtype}"
        )
    if jnp.dtype(out_dtype).name not in _RESULTS[x.dtype.name]:
        return f"results are {', '.join(_RESULTS[x.dtype.name])}, not {out_dtype}"
    return None
