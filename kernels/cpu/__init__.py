"""Native CPU kernels: C++ microkernels behind the XLA FFI, on XLA's own threads.

    product      y = x @ W,  or x @ Wᵀ            every storage
    scaled       (x @ W) * scales, in one pass    every storage
    sampled      xᵀ @ g where W stores something  every storage
    int8_dot     codes by int8 W, in integers     blocks
    convolution  x @ W for what windows see in an image, of which no patches are made

x in float32 or bfloat16, weights in float32, bfloat16 or int8; they compute in float32,
for AVX-512, AVX2 with FMA, or any processor the compiler knows, chosen when the library
is loaded (JAXSPARSE_CPU_ISA=avx512|avx2|portable names one instead, and avx512vnni or
avxvnni what integers are multiplied by besides). Every product refuses
the same: pointers that fall or end beyond what is stored, rows outside the weight or out of
order, bits that are not as many as the values. A position of n:m that is named twice counts
twice.

x @ W of `CSRLayout`, and x @ Wᵀ of `CSCLayout`, skip the zeros of x where it has eight rows or
fewer: the weights that a zero would multiply are neither read nor checked, infinite ones too.

The shared object is built at installation where a C++17 compiler is found.
`missing` says why it is not there otherwise.
"""

import jax.numpy as jnp

from jaxsparse.kernels import ffi
from jaxsparse.kernels.cpu import int8, library
from jaxsparse.kernels.cpu.int8 import int8_dot
from jaxsparse.kernels.cpu.library import instruction_set, int8_instruction_set, missing
from jaxsparse.kernels.cpu.limits import fma_peak, read_bandwidth
from jaxsparse.kernels.layouts import BitmapLayout, BlockLayout, CSCLayout, CSRLayout, NMLayout
from jaxsparse.kernels.windows import Window

__all__ = [
    "convolution",
    "fma_peak",
    "instruction_set",
    "int8_dot",
    "int8_instruction_set",
    "missing",
    "product",
    "read_bandwidth",
    "sampled",
    "scaled_product",
    "unsupported",
]

platforms = ("cpu",)
exportable = False

_STORAGES = {
    BlockLayout: "block",
    CSCLayout: "csc",
    CSRLayout: "csc",  # of the transpose
    BitmapLayout: "bitmap",
    NMLayout: "nm",
}
_X = ("float32", "bfloat16")
_VALUES = ("float32", "bfloat16", "int8")
_UNSIGNED = (jnp.uint16, jnp.uint32)
_GROUPS = (2, 4, 8, 16)


def unsupported(op, layout, x, values, out_dtype, transpose=False) -> str | None:
    """The reason why they cannot take a call, or None."""
    del transpose
    if op == "int8_dot":
        return int8.unsupported(layout)
    if type(layout) not in _STORAGES:
        return f"{type(layout).__name__} is not among its storages"
    if out_dtype.itemsize > 4:
        return f"it computes in float32, {out_dtype} was asked for"
    if x.dtype.name not in _X:
        return f"x must be float32 or bfloat16, not {x.dtype}"
    if op == "convolution" and isinstance(layout, CSRLayout):
        return "weights by input are not among the storages of its convolution"
    if op == "convolution" and x.ndim not in (3, 4):
        return f"its convolution has one or two spatial axes, not {x.ndim - 2}"
    # The second factor of a sampled product is an activation, stored in any float.
    if op != "sampled" and values.dtype.name not in _VALUES:
        return f"weights must be float32, bfloat16 or int8, not {values.dtype}"
    if isinstance(layout, BlockLayout) and (
        layout.block[1] % 16 or max(layout.block) > int8.LARGEST
    ):
        return f"a block's columns must be a multiple of 16, got block={layout.block}"
    if isinstance(layout, NMLayout):
        if layout.columns > 1:
            return "positions shared by several columns are not among its storages"
        if layout.m not in _GROUPS or not 1 <= layout.n <= layout.m:
            return f"groups must be n of 2, 4, 8 or 16 with n <= m, got {layout.n}:{layout.m}"
    return None


def product(x, values, *index, layout, transpose, out_dtype):
    """x (M, K) by W, or x (M, N) by Wᵀ when `transpose`, in `out_dtype`."""
    shape = x.shape[0], layout.shape[0 if transpose else 1]
    return _call("product", shape, out_dtype, layout, x, values, index, transpose=transpose)


def scaled_product(x, values, scales, *index, layout, out_dtype):
    """(x @ W) * scales for x (M, K) and scales (N,)."""
    shape = x.shape[0], layout.shape[1]
    scales = jnp.asarray(scales, jnp.float32)
    return _call("product", shape, out_dtype, layout, x, values, index, scales, transpose=False)


def sampled(x, g, *index, layout, out_dtype):
    """xᵀ @ g for x (M, K) and g (M, N), only where the layout stores values."""
    g = jnp.asarray(g, jnp.float32)
    return _call("sampled", layout.values_shape, out_dtype, layout, x, g, index)


def convolution(x, values, *index, layout, window: Window, out_dtype):
    """Images x (batch, *sizes, channels) under windows by W (taps * channels, N), in `out_dtype`.

    There are one or two spatial axes.
    """
    places = window.places(x.shape[1:-1])
    if len(places) == 1:
        x, window = x[:, None], window.lifted
    (top, _), (left, _) = window.padding
    numbers = (*window.size, *window.strides, *window.dilation, top, left)
    shape = x.shape[0], *window.places(x.shape[1:-1]), layout.shape[1]
    y = _call("convolution", shape, out_dtype, layout, x, values, index, window=numbers)
    return y.reshape(x.shape[0], *places, y.shape[-1])


def _call(op, shape, out_dtype, layout, x, second, index, *scales, **attributes):
    library.register()
    if isinstance(layout, NMLayout):
        attributes |= {"n": layout.n, "m": layout.m}
    x = x if op == "convolution" else jnp.asarray(x, jnp.float32)
    if isinstance(layout, CSRLayout):
        if op == "sampled":
            x, second = second, x
        else:
            attributes["transpose"] = not attributes["transpose"]
    # Rows may be uint16 and bits are uint32; all else counts in int32.
    index = [i if i.dtype in _UNSIGNED else jnp.asarray(i, jnp.int32) for i in index]
    operands = x, second, *index, *scales
    target = f"jaxsparse_{_STORAGES[type(layout)]}_{op}"
    return ffi.call(target, shape, jnp.float32, *operands, **attributes).astype(out_dtype)
