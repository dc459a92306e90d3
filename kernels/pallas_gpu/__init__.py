"""Block-sparse products on NVIDIA Hopper, in Pallas's Mosaic GPU.

    product   y = x @ W,  or x @ Wᵀ by the same kernel with blocks turned
    sampled   the blocks of xᵀ @ g

Blocks with sides of 32, 64 or 128, bfloat16 or float16 factors, sums in float32. See
`ring` for how it runs. A block 32 wide is 32 deep steps or a tile 32 wide: wgmma takes
both, and it is what they make x travel that bounds their rate, not the multiplying.

Available by name only (`implementation="mosaic_gpu"`): interpreted, with races
watched for, lowered, exported and compiled for the device, but not yet run on one.
No figure of its speed is known, so `sparse_dot` never chooses it by itself.
"""

import jax
import jax.numpy as jnp
from jaxsparse.kernels import tables
from jaxsparse.kernels.layouts import BlockLayout
from jaxsparse.kernels.pallas_gpu import configs

platforms = ("cuda",)
exportable = True

_SIDES = (32, 64, 128)
_FACTORS = ("bfloat16", "float16")
_RESULTS = (*_FACTORS, "float32")
_HOPPER = ("NVIDIA H200", 132)  # what a program made elsewhere is cut for


def missing() -> str | None:
    """The reason why these kernels cannot be lowered here, or None."""
    if jax.__version_info__ < (0, 11):
        return f"it needs jax 0.11 or later, this is {jax.__version__}"
    return None


def unsupported(op, layout, x, values, out_dtype, transpose=False) -> str | None:
    """The reason why they cannot take a call, or None."""
    del transpose
    if not isinstance(layout, BlockLayout):
        return f"it takes blocks, not {type(layout).__name__}"
    if not set(layout.block) <= set(_SIDES):
        return f"block sides are 32, 64 or 128, these blocks are {layout.block}"
    if layout.padded != layout.shape:
        return f"blocks of {layout.block} do not divide the weight of shape {layout.shape}"
    if op == "sampled" and layout.shape[0] < 64:
        return f"wgmma computes 64 inputs at a time, this weight has {layout.shape[0]}"
    second = "g" if op == "sampled" else "values"
    if x.dtype != values.dtype or x.dtype.name not in _FACTORS:
        return f"x and {second} are both bfloat16 or both float16, not {x.dtype} and {values.dtype}"
    if jnp.dtype(out_dtype).name not in _RESULTS:
        return f"results are {', '.join(_RESULTS)}, not {out_dtype}"
    return _wrong_device()


def product(x, values, *index, layout: BlockLayout, transpose: bool, out_dtype):
    """x (M, K) by W, or x (M, N) by Wᵀ when `transpose`, in `out_dtype`."""
    from jaxsparse.kernels.pallas_gpu import products, schedule

    rows = x.shape[0]
    target = layout.shape[0 if transpose else 1]
    if not rows or not layout.nnz:
        return jnp.zeros((rows, target), out_dtype)
    block = layout.block[::-1] if transpose else layout.block
    kind, sms = _device()
    config = configs.configure("product", block, rows, jnp.dtype(out_dtype).itemsize, kind)
    strips = layout.grid[0 if transpose else 1]
    steps = layout.nnz * max(1, block[0] // configs.DEPTH)
    return products.product(
        x,
        values,
        tables.walk(*index, layout, transpose),
        transpose=transpose,
        out_dtype=out_dtype,
        config=config,
        sms=sms,
        deal=schedule.pays(steps, -(-rows // config.tile_rows), strips, sms),
    )


def sampled(x, g, *index, layout: BlockLayout, out_dtype):
    """xᵀ @ g for x (M, K) and g (M, N), only where the layout stores values."""
    from jaxsparse.kernels.pallas_gpu import products

    if not x.shape[0] or not layout.nnz:
        return jnp.zeros(layout.values_shape, out_dtype)
    indptr, rows = index
    kind, sms = _device()
    splits = configs.splits(layout.nnz, -(-x.shape[0] // configs.DEPTH), sms)
    out_bytes = jnp.dtype(jnp.float32 if splits > 1 else out_dtype).itemsize
    config = configs.configure("sampled", layout.block, x.shape[0], out_bytes, kind)
    return products.sampled(
        x,
        g,
        indptr[-1:],
        rows,
        tables.columns(indptr, layout),
        block=layout.block,
        out_dtype=out_dtype,
        config=config,
        splits=splits,
        sms=sms,
    )


def _gpu():
    """The GPU of this process, or None."""
    try:
        return jax.local_devices(backend="cuda")[0]
    except RuntimeError:
        return None


def _wrong_device() -> str | None:
    gpu = _gpu()
    if gpu is None:
        return None
    capability = gpu.compute_capability
    if capability.startswith("9."):
        return None
    return f"it needs compute capability 9.0 (Hopper), {gpu.device_kind} has {capability}"


def _device() -> tuple[str, int]:
    """Kind and multiprocessors of the device that a program is made for."""
    abstract = jax.sharding.get_abstract_mesh().abstract_device
    if abstract is not None and abstract.num_cores:
        return abstract.device_kind, abstract.num_cores
    gpu = _gpu()
    return (gpu.device_kind, gpu.core_count) if gpu else _HOPPER
