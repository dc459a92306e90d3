"""Places that each site of a convolution reaches on the other side, `NOWHERE` for none."""

import jax.numpy as jnp
from jaxtyping import Array, Int32

from jaxsparse.activations.bounds import NOWHERE, Bounds
from jaxsparse.activations.sites import Sites
from jaxsparse.activations.windows import Window, require_int32


def columns(sites: Sites) -> list[Int32[Array, "n"]]:
    """Coordinates counted from the lower ends, an array an axis, the batch first."""
    return list(jnp.moveaxis(sites.bounds.relative(sites.coordinates), -1, 0))


def floors(fine: Sites, window: Window, coarse: Bounds) -> Int32[Array, "n"]:
    """The place of floor(p / s), by way of what both bounds leave: whole numbers throughout."""
    batch, *rest = columns(fine)
    places = [batch]
    for a, column in enumerate(rest):
        shift = fine.bounds.lower[a] - window.stride[a] * coarse.lower[a]
        require_int32(0, fine.bounds.shape[a] - 1 + shift, "floor outputs")
        places.append((column + shift) // window.stride[a])
    return jnp.where(fine.valid, coarse.keys(places), NOWHERE)


def windows(fine: Sites, window: Window, coarse: Bounds) -> Int32[Array, "slots n"]:
    """Places of `coarse` whose windows hold each site."""
    return slots(fine, window, coarse)[0]


def slots(
    fine: Sites, window: Window, coarse: Bounds
) -> tuple[Int32[Array, "slots n"], Int32[Array, "slots n"]]:
    """Places of `coarse` whose windows hold each site, `NOWHERE` where a slot has none; taps."""
    batch, *rest = columns(fine)
    keys, taps, inside = batch[None], jnp.zeros_like(batch)[None], fine.valid[None]
    for a, (column, shift) in enumerate(
        zip(rest, shifts(window, fine.bounds, coarse), strict=True)
    ):
        s, d = window.stride[a], window.dilation[a]
        reach = d * (window.size[a] - 1)
        require_int32(shift - reach, shift + fine.bounds.shape[a] - 1, "this window's places")
        moved = column + shift
        tap = jnp.asarray(window.hits(a))[moved % s].T
        place = (moved - tap * d) // s
        good = (tap >= 0) & (place >= 0) & (place < coarse.shape[a])
        n = column.shape[0]
        keys = (keys[:, None] * coarse.shape[a] + place).reshape(-1, n)
        taps = (taps[:, None] * window.size[a] + tap).reshape(-1, n)
        inside = (inside[:, None] & good).reshape(-1, n)
    return jnp.where(inside, keys, NOWHERE), taps


def shifts(window: Window, fine: Bounds, coarse: Bounds) -> tuple[int, ...]:
    """p + pad - s q0 for the least p of each axis, with q0 the least q.

    From there on t dil + s (q - q0) is reached.
    """
    axes = zip(fine.lower, window.padding, window.stride, coarse.lower, strict=True)
    return tuple(p + pad - s * q for p, pad, s, q in axes)


def spread(coarse: Sites, window: Window, fine: Bounds) -> Int32[Array, "taps n"]:
    """Places of `fine` that each site's window holds."""
    batch, *rest = columns(coarse)
    keys, inside = batch[None], coarse.valid[None]
    for a, column in enumerate(rest):
        s, reach = window.stride[a], window.dilation[a] * (window.size[a] - 1)
        shift = s * coarse.bounds.lower[a] - window.padding[a] - fine.lower[a]
        last = shift + s * (coarse.bounds.shape[a] - 1) + reach
        require_int32(shift, last, "this window's places")
        taps = jnp.arange(window.size[a], dtype=jnp.int32)[:, None] * window.dilation[a]
        place = column * s + shift + taps
        n = column.shape[0]
        keys = (keys[:, None] * fine.shape[a] + place).reshape(-1, n)
        inside = (inside[:, None] & (place >= 0) & (place < fine.shape[a])).reshape(-1, n)
    return jnp.where(inside, keys, NOWHERE)
