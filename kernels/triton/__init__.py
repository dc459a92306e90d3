"""Block-sparse products on NVIDIA GPUs from Ampere on, in Triton by way of jax-triton.

    product   y = x @ W,  or x @ Wᵀ by the same kernel reading blocks turned
    sampled   the blocks of xᵀ @ g

Blocks with sides 16, 32, 64 or 128, bfloat16, float16 or float32 factors, sums in
float32. A ragged batch is masked inside the kernel, nothing is padded. Factors of
float32 are multiplied in three passes of TF32 (`tf32x3`), about as precise as
float32 itself; `jnp.dot` takes one pass unless told otherwise.

Needs the extra `jaxsparse[triton]` and JAX's CUDA plugin. Available by name only
(`implementation="triton"`): interpreted, lowered and compiled for the device in the
tests, but not yet run on one, so `sparse_dot` never chooses it by itself.
"""

import functools
import importlib
import importlib.util
import os

import jax
import jax.numpy as jnp

from jaxsparse.kernels import devices, walks
from jaxsparse.kernels.layouts import BlockLayout

platforms = ("cuda",)
exportable = False  # jax.export does not vouch for jax-triton's custom call

_SIDES = (16, 32, 64, 128)
_FACTORS = ("bfloat16", "float16", "float32")
# Compute capability, times ten; what a program made elsewhere is cut for. Below it
# Triton uses no tensor cores and spills thousands of bytes.
_OLDEST = 80


@functools.cache
def missing() -> str | None:
    """The reason why these kernels cannot be lowered here, or None."""
    for name in ("triton", "jax_triton"):
        if importlib.util.find_spec(name) is None:
            return f"{name} is not installed (pip install 'jaxsparse[triton]')"
    if not any(importlib.util.find_spec(f"jax_cuda{n}_plugin") for n in (12, 13)):
        return "JAX's CUDA plugin, which lowers Triton kernels, is not installed"
    cache = os.environ.get("TRITON_CACHE_DIR")
    try:
        importlib.import_module("jaxsparse.kernels.triton.products")
    except Exception as error:  # jax-triton reaches into JAX's and Triton's internals
        return f"this jax-triton does not fit jax {jax.__version__}: {error!r}"
    finally:
        # jax-triton empties it, and whoever else uses Triton here would compile in vain.
        os.environ.pop("TRITON_CACHE_DIR", None)
        if cache is not None:
            os.environ["TRITON_CACHE_DIR"] = cache
    return None


def unsupported(op, layout, x, values, out_dtype, transpose=False) -> str | None:
    """The reason why they cannot take a call, or None."""
    del transpose
    if not isinstance(layout, BlockLayout):
        return f"it takes blocks, not {type(layout).__name__}"
    if not set(layout.block) <= set(_SIDES):
        return f"block sides are 16, 32, 64 or 128, these blocks are {layout.block}"
    if layout.padded != layout.shape:
        return f"blocks of {layout.block} do not divide the weight of shape {layout.shape}"
    second = "g" if op == "sampled" else "values"
    if x.dtype != values.dtype or x.dtype.name not in _FACTORS:
        return (
            f"x and {second} are of one dtype among {', '.join(_FACTORS)}, not "
            f"{x.dtype} and {values.dtype}"
        )
    if jnp.dtype(out_dtype).name not in _FACTORS:
        return f"results are {', '.join(_FACTORS)}, not {out_dtype}"
    return devices.gpu_lacks(8, "Ampere")


def product(x, values, *index, layout: BlockLayout, transpose: bool, out_dtype):
    """x (M, K) by W, or x (M, N) by Wᵀ when `transpose`, in `out_dtype`."""
    from jaxsparse.kernels.triton import products

    walk = walks.walk(index, layout, transpose)
    return products.product(
        x, values, walk, transpose=transpose, out_dtype=out_dtype, capability=_capability()
    )


def sampled(x, g, *index, layout: BlockLayout, out_dtype):
    """xᵀ @ g for x (M, K) and g (M, N), only where the layout stores values."""
    from jaxsparse.kernels.triton import products

    indptr, rows = index
    return products.sampled(
        x,
        g,
        indptr[-1:],
        rows,
        layout.columns_of(indptr),
        block=layout.block,
        out_dtype=out_dtype,
        capability=_capability(),
    )


def _capability() -> int:
    """What to compile for: the GPU here, or the oldest, whose code later ones run too."""
    gpu = devices.gpu()
    return round(10 * float(gpu.compute_capability)) if gpu else _OLDEST
