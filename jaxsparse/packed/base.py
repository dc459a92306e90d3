"""What packed weights have in common: pytrees of what survived pruning, and where it was.

| array | stores | for |
|---|---|---|
| `BlockSparse` | blocks by block column, column pointers, block rows | 1x16 ... 128x128 |
| `NMSparse` | n of every m inputs, positions of ceil(log2 m) bits | 2:4, 1:4, 4:8 |
| `Bitmap` | single weights, a bit for every place | unstructured, density .2 and more |
| `CSC` | single weights by column, column pointers, rows | unstructured below |
| `CSR` | single weights by input, input pointers, columns | zeros in x, where it is asked for |

Only `values` (and the scales of int8 values) are numbers to learn; the rest is
the structure. `jax.grad` with respect to `packed.values` trains a packed weight
as it is, and `split_packed` takes a whole tree of parameters apart for that.

A packed weight remembers the axes of the leaf it came from, so that a
convolution or an attention kernel unpacks to its own shape. Stacked kernels
(under `nn.scan`) are packed slice by slice; every array then has the stack's
axes in front, and `jax.lax.scan` and `jax.vmap` take slices as usual.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, ClassVar, NoReturn, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxsparse.kernels.layouts import Layout
from jaxsparse.packed.held import WORD, learned, zero_where
from jaxsparse.patterns.base import Pattern
from jaxsparse.patterns.rules import Sealed
from jaxsparse.patterns.views import View

SHORT_ROWS = 65536  # rows below this fit into uint16
OPTIONAL = ("scales", "held")  # arrays that most packed weights do not have
MAX_AXIS = 2**31 - 1  # indices are int32
MAX_SIZE = 2**45  # beyond any memory; far below where sizes in bytes overflow


class Packed(Sealed):
    """What the packed weights have in common. Construct one of the subclasses.

    Attributes:
      values: the numbers stored; None in a structure.
      view: the shape (K, N), or the View of a kernel of another shape.
      scales: (N,), for int8 values: W = values * scales; None for others.
      held: (ceil(values / 32),) uint32, a bit for every value that was masked within what is
        stored together and stays zero in training; None where there is none.
      stores: the pattern whose weights `pack` stores in this class, None for a class that
        only another one's `store` answers with.
      on_demand: the pattern whose weights `pack` stores in this class where it is named.
      numbered: which side of the matrix indices of 16 bits number, 0 for inputs.
      index_arrays: the arrays that say where the values belong, and what dtypes they may have.
      array_names: of all arrays, set when the class is registered.

    Raises:
      ValueError: for indices out of range or out of order, and shapes that do not fit
        (checked where the arrays are concrete).

    A storage of your own is a frozen dataclass with the fields values, view and scales, its
    index arrays, and ints or pairs of them besides; `storages.register` makes it a pytree.
    It answers `layout` and `store`, and where it can `check_index` and `draw`.
    """

    opened = "js.unpack_params(params) would work"
    values: Any
    scales: Any
    held: Any = None
    view: View
    stores: ClassVar[type[Pattern] | None] = None
    on_demand: ClassVar[type[Pattern] | None] = None
    numbered: ClassVar[int] = 0
    index_arrays: ClassVar[Mapping[str, tuple[str, ...]]]
    array_names: ClassVar[tuple[str, ...]]
    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field]]  # every subclass is one

    @classmethod
    def store(
        cls, flat: Any, kept: Any, xp: Any, *, pattern: Any, columns: int
    ) -> tuple[type[Any], dict[str, Any], dict[str, Any]]:
        """Finds the arrays for a stack of matrices.

        Args:
          flat: (stack, K, N), zero where masked.
          kept: bool (stack, K, N), on the host.
          xp: numpy, or jax.numpy for traced matrices.
          pattern: an instance of `stores`.
          columns: how many consecutive outputs share their places.

        Returns:
          The class that stores them, its arrays by name, the stack in front, and its other
          fields but for the view.
        """
        raise NotImplementedError

    @classmethod
    def draw(cls, key: jax.Array, view: View, pattern: Any, sparsity: Any) -> "Packed":
        """A structure with places drawn uniformly, whose sizes do not depend on the key.

        `sparsity` is the fraction to leave out, None for a pattern that is `fixed`.
        """
        raise TypeError(f"{pattern!r} is not a pattern that a layer can start with.")

    def __post_init__(self):
        if not isinstance(self.view, View):
            object.__setattr__(self, "view", View(tuple(self.view), (), (0,), (1,)))
        if not any(isinstance(array, Tracer) for array in self._children()):
            self._check()

    def _children(self):
        return tuple(getattr(self, name) for name in self.array_names)

    def _check(self):
        self.check_shapes()
        stack = math.prod(self.batch_shape)
        flat = [np.asarray(a).reshape(stack, *a.shape[len(self.batch_shape) :]) for a in self.index]
        for arrays in zip(*flat, strict=True):
            self.check_index(*arrays)

    def check_shapes(self) -> None:
        """Raises ValueError unless the arrays, or abstract ones, have the shapes they need."""
        if max(self.matrix_shape) > MAX_AXIS or self.size > MAX_SIZE:
            raise ValueError(
                f"{type(self).__name__} of shape {self.shape}: a matrix has at most {MAX_AXIS} "
                f"rows and columns, a weight {MAX_SIZE} entries"
            )
        layout, batch = self.layout, self.batch_shape
        expected = {
            "values": layout.values_shape,
            "scales": self.matrix_shape[1:],
            "held": (-(-layout.stored // WORD),),
        }
        expected |= dict(zip(self.index_arrays, layout.index_shapes, strict=True))
        for name, shape in expected.items():
            array = getattr(self, name)
            if array is not None and array.shape != batch + shape:
                raise ValueError(
                    f"{type(self).__name__} of shape {self.shape}: {name} has shape "
                    f"{array.shape}, needs {batch + shape}."
                )

    def check_index(self, *arrays: np.ndarray) -> None:
        """Raises ValueError unless these index arrays of one kernel are in range and in order."""

    @property
    def index(self) -> tuple[Any, ...]:
        """The arrays that say where the values belong."""
        return tuple(getattr(self, name) for name in self.index_arrays)

    @property
    def structure(self) -> Self:
        """The same places without values: what `with_values` completes."""
        return self.replace(values=None)

    def with_values(self, values: jax.Array) -> Self:
        """The same places with other values; what a mask left out there stays zero."""
        arrays = jax.Array | np.ndarray
        if isinstance(values, arrays) and isinstance(self.held, arrays):
            values = zero_where(self.held, values)
        return self.replace(values=values)

    @property
    def learned(self) -> jax.Array:
        """The values; no gradient passes through this to those that stay zero."""
        if self.held is None or not jnp.issubdtype(self.values.dtype, jnp.floating):
            return self.values
        return learned(self.values, self.held)

    def replace(self, **fields) -> Self:
        """A copy with other fields; nothing is checked."""
        own = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return rebuild(type(self), {**own, **fields})

    @property
    def layout(self) -> Layout:
        """What the kernels must know of one kernel at compile time."""
        raise NotImplementedError

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """The axes along which kernels are stacked."""
        first = self.index[0]
        return first.shape[: first.ndim - len(self.layout.index_shapes[0])]

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the dense weight."""
        return self.batch_shape + self.view.shape

    @property
    def ndim(self) -> int:
        """The rank of the dense weight."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """The number of entries of the dense weight."""
        return math.prod(self.shape)

    @property
    def matrix_shape(self) -> tuple[int, int]:
        """(K, N) of one kernel."""
        return self.view.matrix_shape

    @property
    def input_shape(self) -> tuple[int, ...]:
        """The axes of x that a product sums over."""
        return tuple(self.view.shape[axis] for axis in self.view.inputs)

    @property
    def output_shape(self) -> tuple[int, ...]:
        """The axes that a product ends in."""
        return tuple(self.view.shape[axis] for axis in self.view.outputs)

    @property
    def dtype(self):
        """The dtype of the dense weight: that of the scales for quantized values."""
        holder = self.values if self.scales is None else self.scales
        if holder is None:
            raise ValueError("a structure has no values, so no dtype; with_values completes it.")
        return holder.dtype

    @property
    def density(self) -> float:
        """The fraction of the dense weight that is stored, spare room included."""
        return math.prod(self.batch_shape) * self.layout.stored / self.size if self.size else 0.0

    @property
    def nbytes(self) -> int:
        """Bytes of values, scales and indices together."""
        return sum(array.nbytes for array in self._children() if array is not None)

    def todense(self) -> jax.Array:
        """The dense weight; what is not stored is zero."""

        def matrix(values, scales, *index):
            dense = self.layout.todense(values, *index)
            return dense if scales is None else dense.astype(scales.dtype) * scales

        for _ in self.batch_shape:
            matrix = jax.vmap(matrix)
        return self.view.stacked(self.batch_shape).leaf(
            matrix(self.learned, self.scales, *self.index)
        )

    def gather(self, dense: jax.Array) -> jax.Array:
        """The entries of a dense (K, N) at these places: values for `with_values`."""
        return self.layout.gather(dense, *self.index)

    def take_inputs(self, ids: jax.Array) -> jax.Array:
        """Rows of W, of shape (*ids, N), without the dense weight."""
        rows = self.layout.take_inputs(self.learned, *self.index, ids=ids.reshape(-1))
        if self.scales is not None:
            rows = rows.astype(self.scales.dtype) * self.scales
        return rows.reshape(*ids.shape, -1)

    def take_outputs(self, ids: jax.Array) -> jax.Array:
        """Columns of W, of shape (*ids, K), without the dense weight."""
        flat = ids.reshape(-1)
        columns = self.layout.take_outputs(self.learned, *self.index, ids=flat)
        if self.scales is not None:
            columns = columns.astype(self.scales.dtype) * self.scales[flat][:, None]
        return columns.reshape(*ids.shape, -1)

    def _no_array(self, *operands: Any) -> NoReturn:
        del operands
        raise TypeError(
            f"{self!r} is a packed weight, not an array: js.sparsify(function) runs a function of "
            "arrays on it, js.sparse_dot(x, packed) multiplies by it, js.unpack(packed) is dense"
        )

    # What a model's own code would do with a kernel, where `sparsify` was left out.
    __jax_array__ = __array__ = __getitem__ = _no_array
    __matmul__ = __rmatmul__ = __mul__ = __rmul__ = __add__ = __radd__ = _no_array

    def __repr__(self) -> str:
        values = self.values
        kind = getattr(values, "dtype", type(values).__name__)
        try:
            return f"{type(self).__name__}{self._describe()}(shape={self.shape}, {kind})"
        except (AttributeError, TypeError, IndexError):  # a tree of something else than arrays
            return f"{type(self).__name__}({self._children()})"

    def _describe(self) -> str:
        return f"[{self.density:.1%}]"


def rebuild(kind: type[Any], fields: Mapping[str, Any]) -> Any:
    """A packed weight of these fields, which nothing checks: they may be tracers, or anything."""
    packed = object.__new__(kind)
    for name, value in fields.items():
        object.__setattr__(packed, name, value)
    return packed


def is_packed(node: Any) -> bool:
    """Whether a node of a tree is a packed weight; for `is_leaf`."""
    return isinstance(node, Packed)
