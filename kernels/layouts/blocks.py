"""Blocks by block column, and single weights as blocks of one.

A product has two formulations:

- *gathered*, for large blocks and low densities: one batched product over the
  blocks kept. Its work is proportional to what is kept.
- *dense*, otherwise: the weight is spread out for the length of one call and
  multiplied as usual. Small blocks make poor batched products, and there a
  dense product is the fastest thing XLA can do.

Of two values in one place the dense form counts one, and the gathered form adds them up.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Int

from jaxsparse.kernels.layouts.base import STRIPS, Layout, dot, like


@dataclasses.dataclass(frozen=True)
class BlockLayout(Layout):
    """Blocks of bk inputs by bn outputs, ordered by block column, then by row."""

    block: tuple[int, int]
    nnz: int

    @property
    def grid(self) -> tuple[int, int]:
        """Blocks down and across."""
        return -(-self.shape[0] // self.block[0]), -(-self.shape[1] // self.block[1])

    @property
    def padded(self) -> tuple[int, int]:
        return self.grid[0] * self.block[0], self.grid[1] * self.block[1]

    @property
    def values_shape(self) -> tuple[int, int, int]:
        return (self.nnz, *self.block)

    @property
    def index_shapes(self) -> tuple[tuple[int, ...], ...]:
        return (self.grid[1] + 1,), (self.nnz,)

    def columns_of(self, indptr: Int[Array, "..."]) -> Int[Array, "nnz"]:
        """The block column of every stored block; the number of columns for spare room."""
        ends = jnp.zeros(self.nnz + 1, jnp.int32).at[indptr[1:]].add(1)
        return jnp.cumsum(ends)[:-1]

    def todense(self, values, *index):
        indptr, rows = index
        dense = jnp.zeros((*self.grid, *self.block), values.dtype)
        dense = dense.at[rows, self.columns_of(indptr)].set(values, mode="drop")
        dense = dense.transpose(0, 2, 1, 3).reshape(self.padded)
        return dense[: self.shape[0], : self.shape[1]]

    def gather(self, dense, *index):
        indptr, rows = index
        return self._tiles(dense)[rows, self.columns_of(indptr)]

    def take_outputs(self, values, *index, ids):
        indptr, rows = index
        down, (bk, bn) = self.grid[0], self.block

        def one(i):
            column = i // bn
            stored = indptr[column] + jnp.arange(down, dtype=jnp.int32)
            row = rows.at[stored].get(mode="fill", fill_value=0)
            row = jnp.where(stored < indptr[column + 1], row, down)
            entries = values.at[stored, :, i % bn].get(mode="fill", fill_value=0)
            return jnp.zeros((down, bk), values.dtype).at[row].set(entries, mode="drop")

        return jax.vmap(one)(ids).reshape(ids.size, -1)[:, : self.shape[0]]

    def take_inputs(self, values, *index, ids):
        """Searches the blocks of a row in every column, where they are in order."""
        indptr, rows = index
        (down, across), (bk, bn) = self.grid, self.block
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
        return found.reshape(ids.size, across * bn)[:, : self.shape[1]]

    def product(self, x, values, *index, transpose, to):
        if not self._gathering_pays(x.shape[0]):
            return super().product(x, values, *index, transpose=transpose, to=to)
        indptr, rows = index
        columns, side = self.columns_of(indptr), int(transpose)
        source, target = (columns, rows) if transpose else (rows, columns)
        x = self.reach(x, side)
        x = x.reshape(x.shape[0], -1, self.block[side]).swapaxes(0, 1)
        x = x.at[source].get(mode="fill", fill_value=0)
        y = lax.dot_general(
            x, values, (((2,), (1 + side,)), ((0,), (0,))), preferred_element_type=to
        )
        y = jax.ops.segment_sum(y, target, self.grid[1 - side], indices_are_sorted=not transpose)
        return y.swapaxes(0, 1).reshape(y.shape[1], -1)[:, : self.shape[1 - side]]

    def sampled(self, x, g, *index, to):
        """Of a dense gradient an eighth of the columns is at hand at a time."""
        indptr, rows = index
        x, g = self.reach(x, 0), self.reach(g, 1)
        (down, across), (bk, bn), batch = self.grid, self.block, x.shape[0]
        columns = self.columns_of(indptr)
        stored = (columns < across)[:, None, None]
        if self._gathering_pays(batch):
            x = x.reshape(batch, down, bk).swapaxes(0, 1)[rows]
            g = g.reshape(batch, across, bn).swapaxes(0, 1)[jnp.minimum(columns, across - 1)]
            values = lax.dot_general(x, g, (((1,), (1,)), ((0,), (0,))), preferred_element_type=to)
            return jnp.where(stored, values, 0)

        width = -(-across // STRIPS)
        strips = -(-across // width)
        g = jnp.pad(g, ((0, 0), (0, (strips * width - across) * bn)))
        g = g.reshape(batch, strips, width * bn).swapaxes(0, 1)

        def strip(values, inputs):
            number, g = inputs
            dense = dot(x, g, (0, 0), to).reshape(down, bk, width, bn).swapaxes(1, 2)
            local = columns - number * width
            inside = (local >= 0) & (local < width)
            found = dense[rows, jnp.clip(local, 0, width - 1)]
            return jnp.where(inside[:, None, None], found, values), None

        zeros = like(jnp.zeros(self.values_shape, to), x, g, rows)
        values, _ = lax.scan(strip, zeros, (jnp.arange(strips, dtype=jnp.int32), g))
        return jnp.where(stored, values, 0)

    def _tiles(self, dense):
        (down, across), (bk, bn) = self.grid, self.block
        edges = [(0, whole - size) for whole, size in zip(self.padded, self.shape, strict=True)]
        return jnp.pad(dense, edges).reshape(down, bk, across, bn).swapaxes(1, 2)

    def _gathering_pays(self, batch: Any) -> bool:
        if not isinstance(batch, int):  # an export for any batch has to do well by large ones
            return False
        (k, n), (bk, bn) = self.shape, self.block
        few = 8 * self.stored <= k * n
        small = batch * self.nnz * (bk + bn) <= 4 * k * n
        return min(bk, bn) >= 32 and few and small


@dataclasses.dataclass(frozen=True)
class CSCLayout(Layout):
    """Single weights, ordered by column, then by row."""

    nnz: int

    @property
    def values_shape(self) -> tuple[int]:
        return (self.nnz,)

    @property
    def index_shapes(self) -> tuple[tuple[int, ...], ...]:
        return (self.shape[1] + 1,), (self.nnz,)

    def todense(self, values, *index):
        return self._blocks.todense(values[:, None, None], *index)

    def gather(self, dense, *index):
        return self._blocks.gather(dense, *index).reshape(self.nnz)

    def sampled(self, x, g, *index, to):
        return self._blocks.sampled(x, g, *index, to=to).reshape(self.nnz)

    def take_outputs(self, values, *index, ids):
        return self._blocks.take_outputs(values[:, None, None], *_signed(*index), ids=ids)

    def take_inputs(self, values, *index, ids):
        return self._blocks.take_inputs(values[:, None, None], *_signed(*index), ids=ids)

    @property
    def _blocks(self) -> BlockLayout:
        return BlockLayout(self.shape, (1, 1), self.nnz)


def _signed(indptr, rows):
    """Rows of 16 bits as int32: one past the last row is a number, too."""
    return indptr, rows.astype(jnp.int32)
