"""The reference lowering in jax.lax: every platform, every storage, always right.

    product:  y = x @ W        or, transposed,  y = x @ Wᵀ
    sampled:  values of xᵀ @ g at the places where W stores something

Both accumulate in float32 at least. Two formulations:

- *gathered*, for large blocks and low densities: one batched product over the
  blocks kept. Its work is proportional to what is kept.
- *dense*, otherwise: the weight is spread out for the length of one call and
  multiplied as usual. Small blocks make poor batched products, and there a
  dense product is the fastest thing XLA can do.

Indices are trusted, since a compiled program cannot raise: an entry outside the weight is left
out, or counted from the other end where it is negative; of two values in one place one counts,
and the gathered form adds them up.

The sampled product never holds a dense gradient: it works on an eighth of the
columns at a time, or on one position of the groups of N:M.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from jaxsparse.kernels.layouts import CHUNK, BitmapLayout, BlockLayout, CSCLayout, Layout, NMLayout
from jaxsparse.kernels.walks import columns, pad_columns

STRIPS = 8
platforms = None  # every platform
exportable = True


def missing() -> str | None:
    """The reason why this implementation cannot run here: there is none."""
    return None


def unsupported(op, layout, x, values, out_dtype, transpose=False) -> str | None:
    """The reason why this implementation cannot take a call: there is none."""
    del op, layout, x, values, out_dtype, transpose
    return None


def product(x, values, *index, layout: Layout, transpose: bool, out_dtype):
    """x (M, K) by W, or x (M, N) by Wᵀ when `transpose`, in `out_dtype`."""
    compute, accumulate = _dtypes(x, values, out_dtype)
    x, values = x.astype(compute), values.astype(compute)
    if _shares_columns(layout):
        y = _shared_product(x, values, *index, layout=layout, transpose=transpose, to=accumulate)
    elif isinstance(layout, BlockLayout) and _gathering_pays(layout, x.shape[0]):
        y = _gathered_product(x, values, *index, layout=layout, transpose=transpose, to=accumulate)
    else:
        w = todense(values, *index, layout=layout)
        y = _dot(x, w, (1, 1 if transpose else 0), accumulate)
    return y.astype(out_dtype)


def sampled(x, g, *index, layout: Layout, out_dtype):
    """xᵀ @ g for x (M, K) and g (M, N), only where the layout stores values."""
    compute, accumulate = _dtypes(x, g, out_dtype)
    x, g = pad_columns(x.astype(compute), layout.padded[0]), g.astype(compute)
    if _shares_columns(layout):
        values = _dot(x[:, _shared_rows(*index, layout=layout)], g, (0, 0), accumulate)
    elif isinstance(layout, NMLayout):
        values = _nm_sampled(x, g, *index, layout=layout, to=accumulate)
    elif isinstance(layout, BitmapLayout):
        values = _bitmap_sampled(x, g, *index, layout=layout, to=accumulate)
    else:
        g = pad_columns(g, layout.padded[1])
        values = _block_sampled(x, g, *index, layout=_as_blocks(layout), to=accumulate)
    return values.reshape(layout.values_shape).astype(out_dtype)


def todense(values, *index, layout: Layout):
    """W of shape (K, N); what is not stored is zero."""
    if isinstance(layout, NMLayout):
        dense = _nm_todense(values, positions(*index, layout=layout), layout)
    elif isinstance(layout, BitmapLayout):
        kept, ranks = bitmap_ranks(index[1], layout=layout)
        found = values.at[ranks].get(mode="fill", fill_value=0)
        dense = jnp.where(kept, found, jnp.zeros((), values.dtype)).swapaxes(1, 2)
        return dense.reshape(layout.strips * layout.strip, layout.shape[1])[: layout.shape[0]]
    else:
        indptr, rows = index
        blocks = _as_blocks(layout)
        dense = jnp.zeros((*blocks.grid, *blocks.block), values.dtype)
        dense = dense.at[rows, columns(indptr, blocks)].set(
            values.reshape(blocks.values_shape), mode="drop"
        )
        dense = dense.transpose(0, 2, 1, 3)
    return dense.reshape(layout.padded)[: layout.shape[0], : layout.shape[1]]


# --- blocks, and single weights as blocks of one -------------------------------------------------


def _as_blocks(layout: BlockLayout | CSCLayout) -> BlockLayout:
    return (
        BlockLayout(layout.shape, (1, 1), layout.nnz) if isinstance(layout, CSCLayout) else layout
    )


def _gathering_pays(layout: BlockLayout, batch) -> bool:
    if not isinstance(batch, int):  # an export for any batch has to do well by large ones
        return False
    (k, n), (bk, bn) = layout.shape, layout.block
    few = 8 * layout.stored <= k * n
    small = batch * layout.nnz * (bk + bn) <= 4 * k * n
    return min(bk, bn) >= 32 and few and small


def _gathered_product(x, values, indptr, rows, *, layout, transpose, to):
    cols = columns(indptr, layout)
    source, target = (cols, rows) if transpose else (rows, cols)
    from_axis, to_axis = (1, 0) if transpose else (0, 1)
    x = pad_columns(x, layout.padded[from_axis])
    x = x.reshape(x.shape[0], -1, layout.block[from_axis]).swapaxes(0, 1)
    x = x.at[source].get(mode="fill", fill_value=0)
    y = lax.dot_general(
        x, values, (((2,), (1 + from_axis,)), ((0,), (0,))), preferred_element_type=to
    )
    y = jax.ops.segment_sum(y, target, layout.grid[to_axis], indices_are_sorted=not transpose)
    return y.swapaxes(0, 1).reshape(y.shape[1], -1)[:, : layout.shape[to_axis]]


def _block_sampled(x, g, indptr, rows, layout, to):
    (down, across), (bk, bn) = layout.grid, layout.block
    batch = x.shape[0]
    cols = columns(indptr, layout)
    stored = (cols < across)[:, None, None]
    if _gathering_pays(layout, batch):
        x = x.reshape(batch, down, bk).swapaxes(0, 1)[rows]
        g = g.reshape(batch, across, bn).swapaxes(0, 1)[jnp.minimum(cols, across - 1)]
        values = lax.dot_general(x, g, (((1,), (1,)), ((0,), (0,))), preferred_element_type=to)
        return jnp.where(stored, values, 0)

    width = -(-across // STRIPS)
    strips = -(-across // width)
    g = jnp.pad(g, ((0, 0), (0, (strips * width - across) * bn)))
    g = g.reshape(batch, strips, width * bn).swapaxes(0, 1)

    def strip(values, inputs):
        number, g = inputs
        dense = _dot(x, g, (0, 0), to).reshape(down, bk, width, bn).swapaxes(1, 2)
        local = cols - number * width
        inside = (local >= 0) & (local < width)
        found = dense[rows, jnp.clip(local, 0, width - 1)]
        return jnp.where(inside[:, None, None], found, values), None

    zeros = _like(jnp.zeros(layout.values_shape, to), x, g, rows)
    values, _ = lax.scan(strip, zeros, (jnp.arange(strips, dtype=jnp.int32), g))
    return jnp.where(stored, values, 0)


# --- bitmaps --------------------------------------------------------------------------------------


def bitmap_ranks(bits, *, layout: BitmapLayout):
    """Which places (strips, N, strip) are kept, and how many kept ones come before each."""
    return _ranks(bits, _words_before(bits), layout)


def _words_before(bits):
    counts = lax.population_count(bits).astype(jnp.int32)
    return (jnp.cumsum(counts) - counts.reshape(-1)).reshape(counts.shape)


def _ranks(bits, before, layout):
    place = jnp.arange(32, dtype=jnp.uint32)
    kept = (bits[..., None] >> place) & 1 == 1
    inside = lax.population_count(bits[..., None] & ((jnp.uint32(1) << place) - 1))
    ranks = before[..., None] + inside.astype(jnp.int32)
    shape = (*bits.shape[:2], layout.strip)
    return kept.reshape(shape), ranks.reshape(shape)


def pack_bitmap(kept, *, layout: BitmapLayout):
    """starts and bits of a boolean (K, N)."""
    kept = by_strips(kept, layout=layout)
    shape = layout.index_shapes[1]
    words = kept.reshape(*shape, 32).astype(jnp.uint32) << jnp.arange(32, dtype=jnp.uint32)
    counts = jnp.sum(kept, axis=2, dtype=jnp.int32)
    counts = jnp.pad(counts, ((0, 0), (0, -shape[1] % CHUNK))).reshape(-1, CHUNK).sum(1)
    starts = jnp.concatenate([jnp.zeros(1, jnp.int32), jnp.cumsum(counts, dtype=jnp.int32)])
    return starts, jnp.sum(words, axis=-1, dtype=jnp.uint32)


def by_strips(dense, *, layout: BitmapLayout):
    """(K, N) as (strips, N, strip), the order of the values; below the last row, zeros."""
    dense = jnp.pad(dense, ((0, layout.strips * layout.strip - dense.shape[0]), (0, 0)))
    return dense.reshape(layout.strips, layout.strip, dense.shape[1]).swapaxes(1, 2)


def _bitmap_sampled(x, g, starts, bits, layout, to):
    del starts
    width = -(-layout.shape[1] // STRIPS)
    strips = -(-layout.shape[1] // width)
    missing = strips * width - layout.shape[1]
    before = _words_before(bits)

    def cut(array, axis):
        array = jnp.pad(array, [(0, missing * (i == axis)) for i in range(array.ndim)])
        shape = (*array.shape[:axis], strips, width, *array.shape[axis + 1 :])
        return jnp.moveaxis(array.reshape(shape), axis, 0)

    def strip(values, inputs):
        g, bits, before = inputs
        kept, ranks = _ranks(bits, before, layout)
        dense = by_strips(_dot(x, g, (0, 0), to), layout=layout)
        return values.at[jnp.where(kept, ranks, layout.nnz)].set(dense, mode="drop"), None

    zeros = _like(jnp.zeros(layout.values_shape, to), x, g, bits)
    return lax.scan(strip, zeros, (cut(g, 1), cut(bits, 1), cut(before, 1)))[0]


# --- n of every m --------------------------------------------------------------------------------


def positions(words, *, layout: NMLayout):
    """Unpacks the words: (R, N) positions within their group, R rows of values."""
    found = _unpack(words, layout)
    if layout.columns > 1:
        found = jnp.repeat(found, layout.columns, axis=1)[:, : layout.shape[1]]
    return found


def pack_positions(found, *, layout: NMLayout):
    """Packs positions of shape (R, ceil(N / columns)) into words."""
    words, across = layout.index_shapes[0]
    found = jnp.pad(found, ((0, words * layout.per_word - found.shape[0]), (0, 0)))
    found = found.reshape(words, layout.per_word, across).astype(jnp.uint32)
    return jnp.sum(found << _shifts(layout), axis=1, dtype=jnp.uint32)


def _unpack(words, layout):
    found = (words[:, None] >> _shifts(layout)) & (2**layout.bits - 1)
    found = found.reshape(len(words) * layout.per_word, words.shape[1])[: layout.values_shape[0]]
    return found.astype(jnp.int32)


def _shifts(layout):
    return (jnp.arange(layout.per_word, dtype=jnp.uint32) * layout.bits)[:, None]


def _groups(array, layout):
    return array.reshape(array.shape[0] // layout.n, layout.n, layout.shape[1])


def _nm_todense(values, found, layout):
    values, found = _groups(values, layout), _groups(found, layout)
    place = jnp.arange(layout.m, dtype=jnp.int32)[:, None]
    dense = jnp.zeros((values.shape[0], layout.m, layout.shape[1]), values.dtype)
    for i in range(layout.n):
        # Selected, not summed: -0.0 and NaN come back as they were stored.
        dense = jnp.where(found[:, i, None] == place, values[:, i, None], dense)
    return dense


def _nm_sampled(x, g, words, layout, to):
    found = _groups(positions(words, layout=layout), layout)
    x = x.reshape(x.shape[0], layout.padded[0] // layout.m, layout.m)

    def place(values, j):
        at_j = lax.dynamic_index_in_dim(x, j, 2, keepdims=False)
        return jnp.where(found == j, _dot(at_j, g, (0, 0), to)[:, None], values), None

    zeros = _like(jnp.zeros(found.shape, to), x, g, words)
    return lax.scan(place, zeros, jnp.arange(layout.m, dtype=jnp.int32))[0]


def _shares_columns(layout):
    return isinstance(layout, NMLayout) and layout.columns >= layout.shape[1]


def _shared_rows(words, layout):
    group = jnp.arange(layout.values_shape[0], dtype=jnp.int32) // layout.n
    return group * layout.m + _unpack(words, layout)[:, 0]


def _shared_product(x, values, words, *, layout, transpose, to):
    rows = _shared_rows(words, layout)
    if not transpose:
        x = pad_columns(x, layout.padded[0])
        # Gathered along the first axis: XLA's CPU compiler in jax 0.10 decides how to multiply
        # bfloat16 before it turns x[:, rows] into this, and then cannot.
        return _dot(x.T[rows], values, (0, 0), to)
    y = _dot(x, values, (1, 1), to)
    spread = _like(jnp.zeros((x.shape[0], layout.padded[0]), to), y, words)
    return spread.at[:, rows].set(y)[:, : layout.shape[0]]


# --- for all of them ------------------------------------------------------------------------------


def _dot(a, b, axes, to):
    return lax.dot_general(a, b, (((axes[0],), (axes[1],)), ((), ())), preferred_element_type=to)


def _dtypes(a, b, out_dtype):
    """What the factors are cast to, and what their products are summed in."""
    floating = [_wide(v.dtype) for v in (a, b) if jnp.issubdtype(v.dtype, jnp.floating)]
    compute = functools.reduce(jnp.promote_types, floating)
    return compute, jnp.promote_types(jnp.promote_types(compute, _wide(out_dtype)), jnp.float32)


def _wide(dtype):
    """bfloat16, which holds them all, for floats of 8 bits: JAX promotes those to nothing."""
    eight = jnp.issubdtype(dtype, jnp.floating) and jnp.dtype(dtype).itemsize == 1
    return jnp.dtype(jnp.bfloat16) if eight else dtype


def _like(zeros, *arrays):
    """Zeros that vary over the same manual axes of a mesh as `arrays` do."""
    varying = frozenset().union(*(jax.typeof(a).manual_axis_type.varying for a in arrays))
    return lax.pcast(zeros, tuple(varying), to="varying") if varying else zeros
