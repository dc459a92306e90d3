"""Packed weights that stand in for dense arrays while a program runs.

A `StandIn` is a packed weight together with how the program sees it at the
moment: cast, transposed, reshaped. A product is possible whenever the factors
summed over (see `factors`) are exactly those of the inputs (or of the outputs,
for the transposed product), in any order.
"""

import dataclasses
import math
from typing import Self

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxsparse.arrays import CSC, Bitmap, NMSparse
from jaxsparse.factors import Factor, Factored, split
from jaxsparse.kernels import xla
from jaxsparse.kernels.layouts import CHUNK, BitmapLayout, BlockLayout
from jaxsparse.packed import Packed
from jaxsparse.sparse_dot import matrix_product


@dataclasses.dataclass(frozen=True, eq=False)
class StandIn(Factored):
    """A packed weight seen through casts, transposes and reshapes.

    Attributes:
      axes: factors of every axis of the array it stands for, major to minor.
      packed: the weight.
      batch, inputs, outputs: the same factors, by what they mean to the weight.
      name: the path of the weight in the arguments.
    """

    packed: Packed
    batch: tuple[Factor, ...]
    inputs: tuple[Factor, ...]
    outputs: tuple[Factor, ...]
    name: str

    @classmethod
    def of(cls, packed: Packed, name: str) -> Self:
        """The packed weight as it is."""
        stacked = len(packed.batch_shape)
        axes = [((i,), size) for i, size in enumerate(packed.shape)]

        def part(numbers):
            return tuple(axes[i] for i in numbers if axes[i][1] != 1)

        return cls(
            tuple(part([i]) for i in range(len(axes))),
            packed,
            tuple(axes[i] for i in range(stacked)),
            part(axis + stacked for axis in packed.view.inputs),
            part(axis + stacked for axis in packed.view.outputs),
            name,
        )

    @property
    def dtype(self):
        return self.packed.dtype

    def todense(self) -> jax.Array:
        """The array that it stands for."""
        original = StandIn.of(self.packed, self.name)
        order = [factor for axis in self.axes for factor in axis]
        ours = [factor for factor in (*self.batch, *self.inputs, *self.outputs) if factor[1] != 1]
        stored = [f for axis in original.axes for f in axis]
        # Factors that were split follow one another where the whole one was.
        stored = [part for whole in stored for part in _parts(whole, ours)]
        dense = self.packed.todense().reshape([size for _, size in stored])
        return dense.transpose([stored.index(f) for f in order]).reshape(self.shape)

    def cast(self, dtype) -> Self:
        """The same weight in another floating dtype."""
        packed = self.packed
        if packed.scales is not None:
            return self._seen(packed=packed.replace(scales=packed.scales.astype(dtype)))
        return self._seen(packed=packed.replace(values=packed.learned.astype(dtype)))

    def scale(self, factor) -> Self:
        """The weight times a scalar."""
        packed = self.packed
        if packed.scales is not None:
            return self._seen(packed=packed.replace(scales=packed.scales * factor))
        return self._seen(packed=packed.replace(values=packed.learned * factor))

    def _seen(self, **changes) -> Self:
        return dataclasses.replace(self, **changes)

    def seen(self, axes, splits) -> Self:
        parts = {k: split(getattr(self, k), splits) for k in ("batch", "inputs", "outputs")}
        return self._seen(axes=tuple(axes), **parts)

    def broadcast(self, shape, places) -> Self | None:
        """`broadcast_in_dim` where it only adds axes of size 1."""
        if math.prod(shape) != math.prod(self.shape):
            return None
        return super().broadcast(shape, places)

    def index(self, axis, position, keep=True) -> Self | None:
        """One kernel of a stack; None if the axis does not number kernels."""
        factors = self.axes[axis]
        if len(factors) != 1 or factors[0] not in self.batch:
            return None
        number = self.batch.index(factors[0])
        packed = jax.tree.map(
            lambda a: lax.dynamic_index_in_dim(a, position, number, keepdims=False), self.packed
        )
        axes = (*self.axes[:axis], *([()] if keep else []), *self.axes[axis + 1 :])
        return self._seen(
            packed=packed, axes=axes, batch=self.batch[:number] + self.batch[number + 1 :]
        )

    def slice_of(self, packed: Packed) -> Self:
        """What a slice of the packed stack, along its first axis, stands for."""
        return self._seen(packed=packed, axes=self.axes[1:], batch=self.batch[1:])

    def product(self, x, summed, batched, dtype, implementation) -> jax.Array | None:
        """x, of shape (*batched, rows, *summed), by this array.

        Args:
          summed: axes of this array that x's last axes are summed with.
          batched: axes of this array that go with x's first axes.

        Returns:
          Of shape (*batched, rows, *the other axes), or None where the weight's
          storage knows no such product.
        """
        free = [i for i in range(len(self.axes)) if i not in (*summed, *batched)]
        over, left = ([f for i in part for f in self.axes[i]] for part in (summed, free))
        stack = [f for f in self.batch if f[1] != 1]
        alone = not batched  # every kernel of a stack multiplies the same x
        if [f for i in batched for f in self.axes[i]] != ([] if alone else stack):
            return None
        ours = [f for f in left if f not in stack] if alone else left
        if sorted(over) == sorted(self.inputs) and sorted(ours) == sorted(self.outputs):
            source, target, transpose = self.inputs, self.outputs, False
        elif sorted(over) == sorted(self.outputs) and sorted(ours) == sorted(self.inputs):
            source, target, transpose = self.outputs, self.inputs, True
        else:
            return None

        def multiply(x, packed):
            x = _reorder(x, over, source)
            return matrix_product(
                x, packed, transpose=transpose, implementation=implementation, out_dtype=dtype
            )

        sizes = self.packed.batch_shape
        for _ in sizes:
            multiply = jax.vmap(multiply, (None if alone else 0, 0))
        rows = x.shape[len(batched)]
        x = x.reshape(*([] if alone else sizes), rows, _size(over))
        y = multiply(x, self.packed)
        if alone:
            y = jnp.moveaxis(y, -2, 0).reshape(rows, _size(left))
            y = _reorder(y, [*stack, *target], left)
        else:
            y = _reorder(y.reshape(-1, _size(left)), target, left)
        shape = [self.shape[i] for i in batched], [self.shape[i] for i in free]
        return y.reshape(*shape[0], rows, *shape[1])

    def take(self, ids) -> jax.Array | None:
        """Rows of the array it stands for, from a matrix (outputs, inputs)."""
        if self.batch or self.axes != (self.outputs, self.inputs) or self.packed.batch_shape:
            return None
        return take_outputs(self.packed, ids)


jax.tree_util.register_dataclass(
    StandIn, ["packed"], ["axes", "batch", "inputs", "outputs", "name"]
)


def take_outputs(packed: Packed, ids: jax.Array) -> jax.Array:
    """Columns of W, of shape (*ids, K), without the dense W: a lookup in an embedding."""
    layout = packed.layout
    flat = ids.reshape(-1)
    if isinstance(packed, NMSparse):
        words = packed.positions[:, flat // layout.columns]
        narrow = dataclasses.replace(layout, shape=(layout.shape[0], flat.size), columns=1)
        found = xla.todense(packed.learned[:, flat], words, layout=narrow).T
    elif isinstance(packed, Bitmap):
        found = _bitmap_columns(packed, flat)
    else:
        if isinstance(packed, CSC):
            layout = BlockLayout(layout.shape, (1, 1), layout.nnz)
        (down, _), (bk, bn) = layout.grid, layout.block
        (indptr, rows), values = packed.index, packed.learned.reshape(layout.values_shape)

        def one(i):
            column = i // bn
            stored = indptr[column] + jnp.arange(down, dtype=jnp.int32)
            last = indptr[column + 1]
            row = rows.at[stored].get(mode="fill", fill_value=0)
            row = jnp.where(stored < last, row, down)
            entries = values.at[stored, :, i % bn].get(mode="fill", fill_value=0)
            return jnp.zeros((down, bk), values.dtype).at[row].set(entries, mode="drop")

        found = jax.vmap(one)(flat).reshape(flat.size, -1)[:, : layout.shape[0]]
    if packed.scales is not None:
        found = found.astype(packed.scales.dtype) * packed.scales[flat][:, None]
    return found.reshape(*ids.shape, -1)


def _bitmap_columns(packed: Bitmap, columns: jax.Array) -> jax.Array:
    """Columns of W, of shape (columns, K): values, counted from where their chunk begins."""
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


def _reorder(matrix, have, want):
    """The columns of a matrix, numbered by the factors `have`, numbered by `want` instead."""
    if list(have) == list(want):
        return matrix
    split = matrix.reshape(-1, *[size for _, size in have])
    order = [1 + list(have).index(factor) for factor in want]
    return split.transpose(0, *order).reshape(matrix.shape)


def _size(factors):
    return int(np.prod([size for _, size in factors], dtype=np.int64))


def _parts(whole, factors):
    name = whole[0]
    parts = [f for f in factors if f[0][: len(name)] == name]
    return sorted(parts, key=lambda f: f[0])
