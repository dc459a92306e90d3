"""Exact top-k masks without a sort.

Scores map to unsigned integers of the same order. The k-th largest is found two
bits at a time by counting how many lie at or above three candidates; entries
equal to it are kept in row-major order, and how far that goes is found by
counting again. Nothing is sorted, flattened or moved: counts are all that shards
exchange, and every leaf is counted in the same loop.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, UInt

DIGIT = 2  # bits decided by one pass over the data
CHUNK = 32  # minor entries counted in one go
SHARDS = 16  # chunks stay whole where the minor axis lies on up to so many devices


class Candidates(NamedTuple):
    """One leaf's part of a selection.

    Attributes:
      scores: any float dtype; the first `len(kept.shape)` axes are batch axes.
      kept: int32, how many to keep in each batch slice, 0 to the slice's size.
      allowed: False where an entry may only be kept after all that are allowed.
    """

    scores: Float[Array, "..."]
    kept: Int[Array, "*batch"]
    allowed: Bool[Array, "..."] | None = None


def top_k_masks(leaves: list[Candidates]) -> list[Bool[Array, "..."]]:
    """Returns for each leaf the mask of its `kept` largest scores, batch slice by slice.

    The number kept is the number asked for, whatever the scores: -0 equals +0,
    infinities are ordinary, NaN ranks below every number, what is not allowed
    below NaN, and of equal scores the first in row-major order are kept.
    """
    if not leaves:
        return []
    bits = common_bits([(leaf.scores, leaf.allowed) for leaf in leaves])
    kept = [jnp.asarray(leaf.kept, jnp.int32) for leaf in leaves]
    cuts = kth_largest(bits, kept)
    above = [b > over(c, b) for b, c in zip(bits, cuts, strict=True)]
    equal = [b == over(c, b) for b, c in zip(bits, cuts, strict=True)]
    missing = [k - count(a, k.ndim) for k, a in zip(kept, above, strict=True)]
    more = [jnp.any(count(e, k.ndim) > k) for e, k in zip(equal, missing, strict=True)]
    # Continuous scores rarely tie at the cut: then the second search is not run.
    ties = lax.cond(
        jnp.any(jnp.stack(more)), _first_in_order, lambda equal, _: equal, equal, missing
    )
    return [a | t for a, t in zip(above, ties, strict=True)]


def _first_in_order(equal: list[Array], kept: list[Array]) -> list[Array]:
    """Of the True entries keeps the first `kept` in row-major order."""
    order = [jnp.where(e, ~_row_major(e, k.ndim), 0) for e, k in zip(equal, kept, strict=True)]
    cuts = kth_largest(order, kept)
    return [
        e & (o >= over(c, o)) & (over(k, o) > 0)
        for e, o, c, k in zip(equal, order, cuts, kept, strict=True)
    ]


def common_bits(
    scores: Sequence[tuple[Float[Array, "..."], Bool[Array, "..."] | None]],
) -> list[UInt[Array, "..."]]:
    """`ordered_bits` of (scores, allowed) in one order: of float64 if one leaf is float64."""
    wide = any(s.dtype == jnp.float64 for s, _ in scores)
    dtype = jnp.float64 if wide else jnp.float32
    return [ordered_bits(s.astype(dtype), allowed) for s, allowed in scores]


def ordered_bits(
    scores: Float[Array, "..."], allowed: Bool[Array, "..."] | None = None
) -> UInt[Array, "..."]:
    """Maps floats to unsigned integers in the same order, NaN to 1, not allowed to 0.

    float64 maps to uint64, every other dtype to uint32.
    """
    wide = scores.dtype == jnp.float64
    scores = scores.astype(jnp.float64 if wide else jnp.float32)
    unsigned = jnp.uint64 if wide else jnp.uint32
    sign = jnp.asarray(1, unsigned) << (63 if wide else 31)
    bits = lax.bitcast_convert_type(scores, unsigned)
    bits = jnp.where(bits == sign, jnp.asarray(0, unsigned), bits)  # -0 is +0
    bits = jnp.where(bits >= sign, ~bits, bits | sign)
    # By bits, because comparing floats flushes subnormals on some backends.
    bits = jnp.where(jnp.isnan(scores), jnp.asarray(1, unsigned), bits)
    return bits if allowed is None else jnp.where(allowed, bits, jnp.asarray(0, unsigned))


def from_ordered_bits(bits: UInt[Array, "..."]) -> Float[Array, "..."]:
    """Undoes `ordered_bits` for numbers: uint32 to float32, uint64 to float64."""
    wide = bits.dtype == jnp.uint64
    sign = jnp.asarray(1, bits.dtype) << (63 if wide else 31)
    raw = jnp.where(bits >= sign, bits ^ sign, ~bits)
    return lax.bitcast_convert_type(raw, jnp.float64 if wide else jnp.float32)


def kth_largest(
    bits: list[UInt[Array, "..."]], kept: list[Int[Array, "..."]]
) -> list[UInt[Array, "..."]]:
    """Returns for each leaf, slice by slice, the largest t with at least `kept` entries >= t."""
    return search_thresholds(
        bits,
        [k.shape for k in kept],
        lambda counts: [c >= k for c, k in zip(counts, kept, strict=True)],
    )


def search_thresholds(
    bits: list[UInt[Array, "..."]],
    batch_shapes: list[tuple[int, ...]],
    enough: Callable[[list[Int[Array, "..."]]], list[Bool[Array, "..."]]],
) -> list[UInt[Array, "..."]]:
    """Returns for each leaf and slice the largest t at which the counts are `enough`.

    `enough` sees how many entries of every leaf are >= t, must be monotone in
    these counts, and is taken to hold at t = 0. It may judge all leaves together.
    """
    dtype = jnp.uint64 if any(b.dtype == jnp.uint64 for b in bits) else jnp.uint32
    width = jnp.iinfo(dtype).bits
    chunked = [_chunked(b.astype(dtype)) for b in bits]

    def decide(step, found):
        shift = (width - DIGIT * (step + 1)).astype(dtype)
        tried = [[f | (jnp.asarray(d, dtype) << shift) for d in range(1, 2**DIGIT)] for f in found]
        counts = [_counts(b, t) for b, t in zip(chunked, tried, strict=True)]
        for at in range(2**DIGIT - 1):
            good = enough([c[at] for c in counts])
            found = [
                jnp.where(_as(g, f), t[at], f) for g, f, t in zip(good, found, tried, strict=True)
            ]
        return found

    # Functions of the data, so that under explicit axes they are sharded as the batch is.
    start = [
        jnp.zeros_like(count(b != b, len(shape)), dtype)
        for b, shape in zip(bits, batch_shapes, strict=True)
    ]
    return lax.fori_loop(0, width // DIGIT, decide, start)


def count(mask: Bool[Array, "..."], batch_ndim: int) -> Int[Array, "*batch"]:
    """Returns how many entries of each batch slice are True."""
    return jnp.sum(mask, axis=tuple(range(batch_ndim, mask.ndim)), dtype=jnp.int32)


def _counts(chunked: Array, thresholds: list[Array]) -> list[Int[Array, "..."]]:
    """Counts entries at or above each threshold in one pass over the data."""
    ones = [(chunked >= over(t, chunked)).astype(jnp.int32) for t in thresholds]
    # A reduction of several operands at once would gather across shards, so it
    # stays within a chunk; plain sums, which all-reduce, do the rest.
    within = lax.reduce(
        ones,
        [jnp.int32(0)] * len(ones),
        lambda a, b: [x + y for x, y in zip(a, b, strict=True)],
        (chunked.ndim - 1,),
    )
    axes = tuple(range(thresholds[0].ndim, chunked.ndim - 1))
    return [jnp.sum(part, axis=axes, dtype=jnp.int32) for part in within]


def _chunked(bits: Array) -> Array:
    """Splits the minor axis into chunks of a power of two, at most CHUNK.

    A chunk that lies on two devices would be gathered, and under explicit axes
    refused. Where the axis is split is not known here, so a chunk divides its
    SHARDS-th part.
    """
    chunk = max(1, math.gcd(bits.shape[-1], CHUNK * SHARDS) // SHARDS)
    return bits.reshape(*bits.shape[:-1], bits.shape[-1] // chunk, chunk)


def _row_major(like: Array, batch_ndim: int) -> UInt[Array, "..."]:
    """Index of every entry within its batch slice."""
    index = jnp.zeros_like(like, jnp.uint32)
    for axis in range(batch_ndim, like.ndim):
        stride = math.prod(like.shape[axis + 1 :])
        index += lax.broadcasted_iota(jnp.uint32, like.shape, axis) * jnp.uint32(stride)
    return index


def over(per_slice: Array, entries: Array) -> Array:
    """Appends axes to an array of batch shape so that it broadcasts over the entries."""
    return per_slice.reshape(per_slice.shape + (1,) * (entries.ndim - per_slice.ndim))


def _as(value: Bool[Array, "..."], like: Array) -> Bool[Array, "..."]:
    return jnp.broadcast_to(value, like.shape) & (like == like)  # sharded as `like`
