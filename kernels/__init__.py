"""Raw-array kernels, one folder per backend; installed as `jaxsparse.kernels`.

A kernel takes and returns arrays: it knows nothing of rules, masks or optax.

An implementation is a module with two to five functions, and what they can do:

    product(x, values, *index, layout, transpose, out_dtype)   x @ W or x @ Wᵀ
    sampled(x, g, *index, layout, out_dtype)                   xᵀ @ g where W stores
    scaled_product(x, values, scales, *index, layout, out_dtype)
                    (x @ W) * scales, where it has a better way than a product
                    and then a multiplication
    int8_dot(x, values, scales, bias, scale, zero_point, out_scale, out_zero_point, *index,
             layout, activation, out_dtype)
                    codes times int8 values in integers, as `jaxsparse.quantized` says, where
                    it has such a product
    convolution(x, values, *index, layout, window, out_dtype)
                    images (batch, *sizes, channels) under a `windows.Window` by
                    W (taps * channels, N), where it has such a product
    platforms       the platforms it lowers for, or None for every one
    exportable      whether `jax.export` accepts its custom calls unasked
    missing()       why it cannot run on this machine, or None
    unsupported(op, layout, x, values, out_dtype, transpose)
                    why it cannot take this call, or None

No function is called where there is nothing to multiply: no rows, inputs, outputs or values.
`x` and `values` in `unsupported` are only looked at for their shape and dtype;
for the sampled product `values` is g.
"""

import functools
import importlib
from typing import Any

_PREFERENCE = ("cpu", "xla")

# Lowered, interpreted and exported in the tests, but never chosen unasked.
_BY_NAME_ONLY = {
    "mosaic_gpu": "not yet run on a GPU",
    "triton": "not yet run on a GPU",
    "cusparselt": "not yet run on a GPU",
    "pallas_tpu": "not yet run on a TPU",
}
_NAMES = (*_PREFERENCE, *_BY_NAME_ONLY)


@functools.cache
def load(name: str) -> tuple[Any, str | None]:
    """The implementation called `name`, and why it cannot be used (or None)."""
    try:
        module = importlib.import_module(f"{__name__}.{name}")
    except ImportError as error:
        return None, f"it is not installed ({error})"
    return module, module.missing()


def implementations() -> dict[str, str]:
    """What can multiply by packed weights here, best first.

    Returns:
      For every implementation of `sparse_dot` the word "available", the reason
      why it cannot be used on this machine, or why it must be asked for by name.
    """
    states = {name: "available" for name in _PREFERENCE}
    for name, why in _BY_NAME_ONLY.items():
        states[name] = f"available by name only: {why}"
    return {name: load(name)[1] or state for name, state in states.items()}


def check(name: str) -> None:
    """Raises unless the implementation called `name` can be used here."""
    if name not in _NAMES:
        raise ValueError(f"implementation={name!r} is not one of {', '.join(_NAMES)}.")
    reason = load(name)[1]
    if reason:
        raise ValueError(f"implementation={name!r} cannot be used: {reason}.")


def choose(
    op,
    name,
    platform,
    exporting,
    whole=False,
    *,
    layout,
    x,
    values,
    out_dtype,
    transpose=False,
    **_,
):
    """The module that computes `op`, one of the functions above, on a platform.

    With a name, that one or an error which says why not. Without, the first
    that runs on the platform and takes the call; an export takes only what
    every machine can load, and a `whole` product, which the compiler divides among
    devices by itself, only what it sees through.
    """
    for candidate in [name] if name else _PREFERENCE:
        module, reason = load(candidate)
        if not reason and module.platforms and platform not in module.platforms:
            reason = f"it runs on {' and '.join(module.platforms)}, this program is for {platform}"
        if not reason and not name and exporting and not module.exportable:
            reason = "it cannot be exported"
        if not reason and whole and module.platforms:
            reason = f"{platform} compilers cannot divide it among devices: call in jax.shard_map"
        if not reason and not hasattr(module, op):
            reason = "it has none"
        if not reason:
            reason = module.unsupported(op, layout, x, values, out_dtype, transpose)
        if not reason:
            return module
        if name:
            raise ValueError(f"implementation={name!r} cannot compute this {op}: {reason}.")
    raise AssertionError("the xla implementation takes every call")
