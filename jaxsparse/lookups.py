"""Rows and columns of packed weights, without the dense weight: lookups in an embedding."""

import dataclasses

import jax
import jax.numpy as jnp
from jax import lax

from jaxsparse.arrays import CSC, Bitmap, NMSparse
from jaxsparse.kernels import xla
from jaxsparse.kernels.layouts import CHUNK, BitmapLayout, BlockLayout
from jaxsparse.packed import Packed


def take_outputs(packed: Packed, ids: jax.Array) -> jax.Array:
    """Columns of W, of shape (*ids, K)."""
    flat = ids.reshape(-1)
    if isinstance(packed, NMSparse):
        layout = packed.layout
        words = packed.positions[:, flat // layout.columns]
        narrow = dataclasses.replace(layout, shape=(layout.shape[0], flat.size), columns=1)
        found = xla.todense(packed.values[:, flat], words, layout=narrow).T
    elif isinstance(packed, Bitmap):
        found = _bitmap_columns(packed, flat)
    else:
        found = _block_columns(packed, flat)
    if packed.scales is not None:
        found = found.astype(packed.scales.dtype) * packed.scales[flat][:, None]
    return found.reshape(*ids.shape, -1)


def take_inputs(packed: Packed, ids: jax.Array) -> jax.Array:
    """Rows of W, of shape (*ids, N)."""
    flat = ids.reshape(-1)
    if isinstance(packed, NMSparse):
        found = _nm_rows(packed, flat)
    elif isinstance(packed, Bitmap):
        found = _bitmap_rows(packed, flat)
    else:
        found = _block_rows(packed, flat)
    if packed.scales is not None:
        found = found.astype(packed.scales.dtype) * packed.scales
    return found.reshape(*ids.shape, -1)


def _as_blocks(packed):
    layout = packed.layout
    if isinstance(packed, CSC):
        layout = BlockLayout(layout.shape, (1, 1), layout.nnz)
    indptr, rows = packed.index
    return layout, indptr, rows.astype(jnp.int32), packed.values.reshape(layout.values_shape)


def _block_columns(packed, columns):
    layout, indptr, rows, values = _as_blocks(packed)
    (down, _), (bk, bn) = layout.grid, layout.block

    def one(i):
        column = i // bn
        stored = indptr[column] + jnp.arange(down, dtype=jnp.int32)
        last = indptr[column + 1]
        row = rows.at[stored].get(mode="fill", fill_value=0)
        row = jnp.where(stored < last, row, down)
        entries = values.at[stored, :, i % bn].get(mode="fill", fill_value=0)
        return jnp.zeros((down, bk), values.dtype).at[row].set(entries, mode="drop")

    return jax.vmap(one)(columns).reshape(columns.size, -1)[:, : layout.shape[0]]


def _block_rows(packed, ids):
    """Searches the blocks of a row in every column, where they are in order."""
    layout, indptr, rows, values = _as_blocks(packed)
    (down, across), (bk, bn) = layout.grid, layout.block
    row = (ids // bk)[:, None]
    low = jnp.broadcast_to(indptr[:-1], (ids.size, across))
    end = jnp.broadcast_to(indptr[1:], low.shape)

    def halve(_, bounds):
        low, high = bounds
        middle = (low + high) // 2
        right = (low < high) & (rows.at[middle].get(mode="fill", fill_value=0) < row)
        return jnp.where(right, middle + 1, low), jnp.where(right, high, middle)

    # A loop, since XLA fuses an unrolled search into a program that doubles with every step.
    low, _ = lax.fori_loop(0, down.bit_length(), halve, (low, end))
    kept = (low < end) & (rows.at[low].get(mode="fill", fill_value=0) == row)
    found = values.at[low, (ids % bk)[:, None]].get(mode="fill", fill_value=0)
    found = jnp.where(kept[..., None], found, jnp.zeros((), values.dtype))
    return found.reshape(ids.size, across * bn)[:, : layout.shape[1]]


def _nm_rows(packed, ids):
    layout = packed.layout
    stored = (ids // layout.m * layout.n)[:, None] + jnp.arange(layout.n, dtype=ids.dtype)
    words = packed.positions[stored // layout.per_word]
    shift = (layout.bits * (stored % layout.per_word)).astype(jnp.uint32)[..., None]
    positions = (words >> shift) & jnp.uint32(2**layout.bits - 1)
    positions = jnp.repeat(positions, layout.columns, axis=2)[..., : layout.shape[1]]
    kept = positions == (ids % layout.m).astype(jnp.uint32)[:, None, None]
    # Of n positions one at most is the row's.
    values = jnp.where(kept, packed.values[stored], jnp.zeros((), packed.values.dtype))
    return jnp.sum(values, axis=1, dtype=values.dtype)


def _bitmap_columns(packed, columns):
    """Values counted from where their chunk begins."""
    layout = packed.layout
    one = BitmapLayout((layout.shape[0], 1), layout.nnz)

    def column(i):
        chunk = i // CHUNK
        others = chunk * CHUNK + jnp.arange(CHUNK, dtype=jnp.int32)
        bits = packed.bits.at[:, others].get(mode="fill", fill_value=0)
        counts = lax.population_count(bits).astype(jnp.int32).sum(axis=2)
        starts = packed.starts[jnp.arange(layout.strips) * layout.chunks + chunk]
        first = starts + jnp.sum(jnp.where(others < i, counts, 0), axis=1)
        kept, ranks = xla.bitmap_ranks(packed.bits[:, i, None], layout=one)
        ranks = ranks - ranks[:, :, :1] + first[:, None, None]
        values = jnp.where(kept, packed.values.at[ranks].get(mode="fill", fill_value=0), 0)
        return values.reshape(-1)[: layout.shape[0]]

    return jax.vmap(column)(columns)


def _bitmap_rows(packed, ids):
    """Values counted from where their word of 32 rows begins."""
    layout, bits = packed.layout, packed.bits
    strips, chunks, n = layout.strips, layout.chunks, layout.shape[1]
    counts = lax.population_count(bits).astype(jnp.int32)
    counts = jnp.pad(counts, ((0, 0), (0, chunks * CHUNK - n), (0, 0)))
    counts = counts.reshape(strips, chunks, -1)  # a chunk's columns, each with its words
    begin = jnp.cumsum(counts, axis=2) - counts + packed.starts[:-1].reshape(strips, chunks, 1)
    begin = begin.reshape(strips, chunks * CHUNK, -1)[:, :n]
    strip, word = ids // layout.strip, ids % layout.strip // 32
    bit = (ids % 32).astype(jnp.uint32)[:, None]
    mine = bits[strip, :, word]
    below = lax.population_count(mine & ((jnp.uint32(1) << bit) - 1)).astype(jnp.int32)
    found = packed.values.at[begin[strip, :, word] + below].get(mode="fill", fill_value=0)
    return jnp.where((mine >> bit) & 1 == 1, found, jnp.zeros((), found.dtype))
