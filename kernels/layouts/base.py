"""What every layout answers; all but the sizes and `todense` has an answer that always works."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, DTypeLike, Int, Shaped

STRIPS = 8  # columns of a dense gradient are at hand an eighth at a time


@dataclasses.dataclass(frozen=True)
class Layout:
    """Sizes of a packed (K, N) weight, and how its arrays are decoded.

    A storage of your own is a frozen dataclass with `values_shape`, `index_shapes` and a
    `todense` that is linear in the values; the rest follows from these, at the price of a
    dense weight for the length of one call.

    Indices are trusted, since a compiled program cannot raise: an entry outside the weight is
    left out, or counted from the other end where it is negative; of two values in one place
    one counts.

    Attributes:
      shape: (K, N).
    """

    shape: tuple[int, int]

    @property
    def values_shape(self) -> tuple[int, ...]:
        """Shape of the values of one kernel."""
        raise NotImplementedError

    @property
    def index_shapes(self) -> tuple[tuple[int, ...], ...]:
        """Shapes of the index arrays of one kernel, in their order."""
        raise NotImplementedError

    @property
    def padded(self) -> tuple[int, int]:
        """(K, N) in whole blocks or groups; single weights have no edge to reach over."""
        return self.shape

    @property
    def stored(self) -> int:
        """Weights stored, the multiplications that one row of x costs."""
        return math.prod(self.values_shape)

    def todense(self, values: Shaped[Array, "..."], *index: Array) -> Shaped[Array, "K N"]:
        """W; what is not stored is zero."""
        raise NotImplementedError

    def gather(self, dense: Shaped[Array, "K N"], *index: Array) -> Shaped[Array, "..."]:
        """The entries of a dense matrix at the places of the values."""
        values = jax.ShapeDtypeStruct(self.values_shape, dense.dtype)
        return jax.linear_transpose(lambda v: self.todense(v, *index), values)(dense)[0]

    def take_inputs(
        self, values: Shaped[Array, "..."], *index: Array, ids: Int[Array, "L"]
    ) -> Shaped[Array, "L N"]:
        """Rows of W."""
        return self.todense(values, *index)[ids]

    def take_outputs(
        self, values: Shaped[Array, "..."], *index: Array, ids: Int[Array, "L"]
    ) -> Shaped[Array, "L K"]:
        """Columns of W."""
        return self.todense(values, *index).T[ids]

    def product(
        self,
        x: Shaped[Array, "M KorN"],
        values: Shaped[Array, "..."],
        *index: Array,
        transpose: bool,
        to: DTypeLike,
    ) -> Shaped[Array, "M NorK"]:
        """x @ W, or x @ Wᵀ when `transpose`, summed in the dtype `to`."""
        return dot(x, self.todense(values, *index), (1, 1 if transpose else 0), to)

    def sampled(
        self, x: Shaped[Array, "M K"], g: Shaped[Array, "M N"], *index: Array, to: DTypeLike
    ) -> Shaped[Array, "..."]:
        """xᵀ @ g at the places of the values, summed in the dtype `to`."""
        return self.gather(dot(x, g, (0, 0), to), *index)

    def reach(self, x: Shaped[Array, "M KorN"], side: int) -> Shaped[Array, "M _"]:
        """x with zero columns after its own, where the last blocks reach over the edge.

        `side` is 0 for x of K columns, 1 for one of N.
        """
        missing = self.padded[side] - x.shape[1]
        return jnp.pad(x, ((0, 0), (0, missing))) if missing else x


def dot(a: Array, b: Array, axes: tuple[int, int], to: DTypeLike) -> Array:
    """The product of two matrices that sums over one axis of each."""
    return lax.dot_general(a, b, (((axes[0],), (axes[1],)), ((), ())), preferred_element_type=to)


def like(zeros: Array, *arrays: Array) -> Array:
    """Zeros that vary over the same manual axes of a mesh as `arrays` do."""
    varying = frozenset().union(*(jax.typeof(a).manual_axis_type.varying for a in arrays))
    return lax.pcast(zeros, tuple(varying), to="varying") if varying else zeros


def module_of(array: Array | np.ndarray) -> Any:
    """numpy for an array on the host, which is decoded without compiling; else jax.numpy."""
    return np if isinstance(array, np.ndarray) else jnp
