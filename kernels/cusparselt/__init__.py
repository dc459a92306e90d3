"""2:4 products on NVIDIA's sparse tensor cores, by cuSPARSELt behind the XLA FFI.

    product   y = x @ W for a 2:4 (or 1:4) weight

x and W in bfloat16 or float16, y in the same, sums in float32; K and N multiples of 16,
a ragged batch is padded to one. `products` also takes int8 to int32.

*Where the compressed weight lives.* cuSPARSELt multiplies by a form of its own, which
only its own code can make, on the device, and which differs between devices and
versions: not a thing to save, or to train. So it is a second, derived form of an
NMSparse array:

- `sparse_dot(x, packed, implementation="cusparselt")` makes it anew in every call, from
  the values of that call. It is right whatever changes, gradients included, and costs
  one spreading out and one pass over the dense weight, little beside a wide batch.
- For a weight that stays, `products.compress` makes it once, an array of bytes to keep
  beside the weight, and `products.multiply` takes it.

*Gradients.* The 2:4 pattern runs along K. The transposed product sums along N, where
there is no pattern to use, and the sampled product's result is packed, not its factors:
both are left to the XLA form, without being asked. `products.multiply` by itself has no
gradient; a weight that is trained belongs into `sparse_dot`.

*Plans* are made once for a device, dtypes, shapes and algorithm, at the first call; the
64 used last are kept, and threads may share them.

Built where a C++ compiler finds CUDA's headers and cusparseLt.h, in a toolkit or in
NVIDIA's wheels. Available by name only (`implementation="cusparselt"`): compiled, loaded
and exported in the tests, its host code run on a stand-in for cuSPARSELt, but not yet
run on a GPU. See `metadata` for CUTLASS's form of the same weights, which is public.
"""

import jax.numpy as jnp

from jaxsparse.kernels import devices, xla
from jaxsparse.kernels.cusparselt import products
from jaxsparse.kernels.cusparselt.library import missing
from jaxsparse.kernels.layouts import NMLayout

__all__ = ["missing", "product", "sampled", "unsupported"]

platforms = ("cuda",)
exportable = False

_FACTORS = ("bfloat16", "float16")


def unsupported(op, layout, x, values, out_dtype, transpose=False) -> str | None:
    """The reason why it cannot take a call, or None."""
    if not isinstance(layout, NMLayout) or layout.m != 4 or layout.n > 2:
        return f"it takes 2:4 and 1:4, not {layout}"
    if op == "sampled" or transpose:
        return None  # by XLA
    if x.dtype != values.dtype or x.dtype.name not in _FACTORS:
        return f"x and values are both bfloat16 or both float16, not {x.dtype} and {values.dtype}"
    if jnp.dtype(out_dtype) != x.dtype:
        return f"results are of the dtype of x, {x.dtype}, not {out_dtype}"
    if reason := products.unsupported_shape(layout.shape, x.dtype):
        return reason
    return devices.gpu_lacks(8, "Ampere")


def product(x, values, *index, layout: NMLayout, transpose: bool, out_dtype):
    """x (M, K) by W, or by XLA x (M, N) by Wᵀ when `transpose`, in `out_dtype`."""
    if transpose:
        return xla.product(
            x, values, *index, layout=layout, transpose=transpose, out_dtype=out_dtype
        )
    compressed = products.compress(values, *index, layout=layout)
    return products.multiply(x, compressed, outputs=layout.shape[1])


def sampled(x, g, *index, layout: NMLayout, out_dtype):
    """xᵀ @ g for x (M, K) and g (M, N), only where the layout stores values; by XLA."""
    return xla.sampled(x, g, *index, layout=layout, out_dtype=out_dtype)
