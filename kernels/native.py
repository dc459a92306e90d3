"""The native CPU kernels of `jaxsparse.kernels.cpu`, as an implementation of `sparse_dot`."""

from jaxsparse.kernels import cpu
from jaxsparse.kernels.layouts import BitmapLayout, BlockLayout, CSCLayout, NMLayout

platforms = ("cpu",)
exportable = False


def missing() -> str | None:
    """The reason why the native kernels cannot run on this machine, or None."""
    return cpu.available()


def unsupported(op, layout, x, values, out_dtype, transpose=False) -> str | None:
    """The reason why they cannot take a call, or None."""
    del transpose
    if out_dtype.itemsize > 4:
        return f"it computes in float32, {out_dtype} was asked for"
    if isinstance(layout, NMLayout) and layout.columns > 1:
        return "positions shared by several columns are not among its storages"
    # The second factor of a sampled product is an activation, stored in any float.
    weights = x.dtype if op == "sampled" else values.dtype
    types = {"x_dtype": x.dtype, "values_dtype": weights}
    if isinstance(layout, BlockLayout):
        return cpu.supports("block", block=layout.block, **types)
    if isinstance(layout, NMLayout):
        return cpu.supports("nm", n=layout.n, m=layout.m, **types)
    return cpu.supports("csc" if isinstance(layout, CSCLayout) else "bitmap", **types)


def product(x, values, *index, layout, transpose, out_dtype, scales=None):
    """x (M, K) by W, or x (M, N) by Wᵀ when `transpose`, in `out_dtype`.

    `scales` (N,), where given, multiply W's columns.
    """
    storage, options, _ = _storage(layout)
    function = getattr(cpu, f"{storage}_dot_transposed" if transpose else f"{storage}_dot")
    y = function(x, values, *index, shape=layout.shape, scales=scales, **options)
    return y.astype(out_dtype)


def scaled_product(x, values, scales, *index, **options):
    """(x @ W) * scales for x (M, K) and scales (N,)."""
    return product(x, values, *index, scales=scales, transpose=False, **options)


def sampled(x, g, *index, layout, out_dtype):
    """xᵀ @ g for x (M, K) and g (M, N), only where the layout stores values."""
    storage, options, sizes = _storage(layout)
    return getattr(cpu, f"{storage}_sampled")(x, g, *index, **options, **sizes).astype(out_dtype)


def _storage(layout):
    """Its name, the options of all its products, and those that the sampled one needs besides."""
    if isinstance(layout, BlockLayout):
        return "block", {}, {"block": layout.block}
    if isinstance(layout, NMLayout):
        return "nm", {"n": layout.n, "m": layout.m}, {}
    if isinstance(layout, BitmapLayout):
        return "bitmap", {}, {"nnz": layout.nnz}
    return "csc", {}, {}
