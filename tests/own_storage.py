"""A pattern and a storage of a user's own, in one file: wrapped diagonals of a matrix.

Entry (i, j) of a (K, N) weight lies on diagonal (j - i) mod N. The pattern prunes whole
diagonals, the storage keeps (diagonals, K) values and a number for each of them. Both join
the batteries of `members.py` and `packed_cases.py` by one line there.
"""

import dataclasses
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np

import jaxsparse as js
from jaxsparse.kernels.layouts import Layout
from jaxsparse.packed.base import Packed
from jaxsparse.packed.held import hold
from jaxsparse.packed.storages import register


@dataclasses.dataclass(frozen=True)
class Diagonals(js.Pattern):
    """Keeps whole wrapped diagonals."""

    def group_shape(self, view):
        return (*view.batch_shape, view.matrix_shape[1])

    def pool(self, entries, view, reduce=None):
        matrix = view.matrix(entries.astype(jnp.float32))
        rows = jnp.arange(matrix.shape[-2])[:, None]
        columns = (rows + jnp.arange(matrix.shape[-1])) % matrix.shape[-1]
        lined_up = matrix[..., rows, columns]
        return jnp.max(lined_up, -2) if reduce == "max" else jnp.mean(lined_up, -2)

    def expand(self, groups, view):
        k, n = view.matrix_shape
        number = (jnp.arange(n) - jnp.arange(k)[:, None]) % n
        return view.leaf(groups[..., number])

    def group_size(self, view):
        return view.matrix_shape[0]

    def storage(self, view):
        return self


@dataclasses.dataclass(frozen=True)
class DiagonalLayout(Layout):
    """Values (count, K) and the numbers of their diagonals (count,); N for spare room."""

    count: int

    @property
    def values_shape(self):
        return self.count, self.shape[0]

    @property
    def index_shapes(self):
        return ((self.count,),)

    def todense(self, values, *index):
        dense, rows = jnp.zeros(self.shape, values.dtype), jnp.arange(self.shape[0])
        return dense.at[rows, self._columns(*index)].set(values, mode="drop", unique_indices=True)

    def sampled(self, x, g, *index, to):
        """Not needed; without it the gradient is dense for the length of a call."""
        g = g.at[:, self._columns(*index)].get(mode="fill", fill_value=0)
        return jnp.einsum("mi,mdi->di", x, g, preferred_element_type=to)

    def _columns(self, numbers):
        n = self.shape[1]
        columns = (jnp.arange(self.shape[0]) + numbers[:, None]) % max(n, 1)
        return jnp.where(numbers[:, None] < n, columns, n)


@register
@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class DiagonalSparse(Packed):
    """A weight of few wrapped diagonals."""

    values: Any
    numbers: Any
    view: Any
    scales: Any = None
    held: Any = None
    stores = Diagonals
    index_arrays: ClassVar = {"numbers": ("int32",)}

    @property
    def layout(self):
        return DiagonalLayout(self.matrix_shape, self.numbers.shape[-1])

    @classmethod
    def store(cls, flat, kept, xp, *, pattern, columns):
        stack, k, n = kept.shape
        rows = np.arange(k)[:, None]
        places = rows, (rows + np.arange(n)) % max(n, 1)
        found = [np.flatnonzero(slice_[places].any(0)) for slice_ in kept]
        room = max(1, *map(len, found))
        numbers = np.stack([np.append(f, [n] * (room - len(f))) for f in found]).astype(np.int32)
        each = np.arange(stack)[:, None, None]
        columns = (np.arange(k) + numbers[..., None]) % max(n, 1)
        spare = numbers[..., None] == n
        values = flat[each, np.arange(k), columns] if n else xp.zeros((stack, room, k), flat.dtype)
        values = xp.where(spare, xp.zeros((), values.dtype), values)
        arrays = {"values": values, "numbers": numbers}
        if n:
            arrays |= hold(~kept[each, np.arange(k), columns] & ~spare)
        return cls, arrays, {}

    def check_index(self, numbers):
        used = numbers[numbers < self.matrix_shape[1]]
        if (numbers < 0).any() or (np.diff(used) <= 0).any():
            raise ValueError(f"numbers {numbers} are not those of diagonals, in rising order")


def draw(rng, k, n, density):
    """A mask of whole diagonals."""
    return (rng.random(n) < density)[(np.arange(n) - np.arange(k)[:, None]) % n]
