"""Packed weights that stand in for dense arrays while a program runs.

A `StandIn` is a packed weight together with how the program sees it at the
moment: cast, transposed, reshaped. A product is possible whenever the factors
summed over (see `factors`) are exactly those of the inputs (or of the outputs,
for the transposed product), in any order.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Self

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxsparse.packed.base import Packed
from jaxsparse.patterns.views import View
from jaxsparse.products.factors import Factor, Factored, split
from jaxsparse.products.sights import Sight


@dataclasses.dataclass(frozen=True, eq=False)
class StandIn(Factored):
    """A packed weight seen through casts, transposes and reshapes.

    Attributes:
      axes: factors of every axis of the array it stands for, major to minor.
      packed: the weight.
      batch, inputs, outputs: the same factors, by what they mean to the weight.
      name: the path of the weight in the arguments.
      whole: shape of the weight as it came, stacks and all.
    """

    packed: Packed
    batch: tuple[Factor, ...]
    inputs: tuple[Factor, ...]
    outputs: tuple[Factor, ...]
    name: str
    whole: tuple[int, ...]

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
            packed.shape,
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

    @property
    def view(self) -> View:
        """The view of the weight as it came, stacks and all."""
        view = self.packed.view
        return view.stacked(self.whole[: len(self.whole) - len(view.shape)])

    @property
    def sight(self) -> Sight:
        """What it shows of the weight as it came."""
        left = {name[0] for axis in self.axes for name, _ in axis}
        taken = (axis for axis, size in enumerate(self.whole) if size != 1 and axis not in left)
        whole = Sight.of(self.name, self.whole).without(tuple(taken), "batch")
        return dataclasses.replace(whole, axes=self.axes)

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

    def slice(self) -> Self:
        """A slice of the stack, where the packed weight is one by now."""
        return self._seen(axes=self.axes[1:], batch=self.batch[1:])

    def product(
        self, x, summed, batched, matrix_product: Callable[..., jax.Array | None]
    ) -> jax.Array | None:
        """x, of shape (*batched, rows, *summed), by this array.

        Args:
          summed: axes of this array that x's last axes are summed with.
          batched: axes of this array that go with x's first axes.
          matrix_product: called with x (rows, K), the packed weight and `transpose`; None is
            what it returns of a product that it does not know.

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
            return matrix_product(x, packed, transpose=transpose)

        sizes = self.packed.batch_shape
        for _ in sizes:
            multiply = jax.vmap(multiply, (None if alone else 0, 0))
        rows = x.shape[len(batched)]
        x = x.reshape(*([] if alone else sizes), rows, _size(over))
        y = multiply(x, self.packed)
        if y is None:
            return None
        if alone:
            y = jnp.moveaxis(y, -2, 0).reshape(rows, _size(left))
            y = _reorder(y, [*stack, *target], left)
        else:
            y = _reorder(y.reshape(-1, _size(left)), target, left)
        shape = [self.shape[i] for i in batched], [self.shape[i] for i in free]
        return y.reshape(*shape[0], rows, *shape[1])

    def matrix(self, summed) -> Packed | None:
        """The packed weight where this array, summed over these axes, is its matrix as it is."""
        free = [i for i in range(len(self.axes)) if i not in summed]
        ends = ([f for i in part for f in self.axes[i]] for part in (summed, free))
        if self.packed.batch_shape or [*map(tuple, ends)] != [self.inputs, self.outputs]:
            return None
        return self.packed

    def take(self, axis, ids) -> jax.Array | None:
        """Slices of a matrix at positions of one axis, of shape (*ids, the other axis)."""
        if self.batch or self.packed.batch_shape or len(self.axes) != 2:
            return None
        ends = self.axes[axis], self.axes[1 - axis]
        if ends == (self.outputs, self.inputs):
            return self.packed.take_outputs(ids)
        return self.packed.take_inputs(ids) if ends == (self.inputs, self.outputs) else None


jax.tree_util.register_dataclass(
    StandIn, ["packed"], ["axes", "batch", "inputs", "outputs", "name", "whole"]
)


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
