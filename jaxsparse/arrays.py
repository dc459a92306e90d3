"""Packed weights: pytrees which store what survived pruning, and where it was.

| array | stores | for |
|---|---|---|
| `BlockSparse` | blocks by block column, column pointers, block rows | 1x16 ... 128x128 |
| `NMSparse` | n of every m inputs, positions of ceil(log2 m) bits | 2:4, 1:4, 4:8 |
| `CSC` | single weights by column, column pointers, rows | unstructured |

Only `values` (and the scales of int8 values) are numbers to learn; the rest is
the structure. `jax.grad` with respect to `packed.values` trains a packed weight
as it is, and `split_packed` takes a whole tree of parameters apart for that.

A packed weight remembers the axes of the leaf it came from, so that a
convolution or an attention kernel unpacks to its own shape. Stacked kernels
(under `nn.scan`) are packed slice by slice; every array then has the stack's
axes in front, and `jax.lax.scan` and `jax.vmap` take slices as usual.
"""

import dataclasses
import json
import math
from typing import Any, ClassVar, Self

import jax
import jax.export
import numpy as np
from jax.core import Tracer

from jaxsparse import indices
from jaxsparse.kernels import xla
from jaxsparse.kernels.layouts import BlockLayout, CSCLayout, Layout, NMLayout
from jaxsparse.views import View

Tree = Any


class Packed:
    """What the packed weights have in common. Construct one of the subclasses."""

    values: Any  # None in a structure
    scales: Any  # None unless quantized
    view: View
    array_names: ClassVar[tuple[str, ...]]

    def __post_init__(self):
        if not isinstance(self.view, View):
            object.__setattr__(self, "view", View(tuple(self.view), (), (0,), (1,)))
        if not any(isinstance(array, Tracer) for array in self._children()):
            self._check()

    def _children(self):
        return tuple(getattr(self, name) for name in self.array_names)

    def _index_arrays(self):
        return tuple(
            getattr(self, name) for name in self.array_names if name not in ("values", "scales")
        )

    def _check(self):
        layout, batch = self.layout, self.batch_shape
        expected = {"values": layout.values_shape, "scales": self.matrix_shape[1:]}
        index = [n for n in self.array_names if n not in expected]
        expected |= dict(zip(index, layout.index_shapes, strict=True))
        for name, shape in expected.items():
            array = getattr(self, name)
            if array is not None and array.shape != batch + shape:
                raise ValueError(
                    f"{type(self).__name__} of shape {self.shape}: {name} has shape "
                    f"{array.shape}, needs {batch + shape}."
                )
        stack = math.prod(batch)
        flat = [np.asarray(a).reshape(stack, *a.shape[len(batch) :]) for a in self.index]
        for arrays in zip(*flat, strict=True):
            self._check_index(*arrays)

    def _check_index(self, *arrays: np.ndarray) -> None:
        """Raises unless these index arrays of one kernel are in range and in order."""
        raise NotImplementedError

    @property
    def index(self) -> tuple[jax.Array, ...]:
        """The arrays that say where the values belong."""
        return self._index_arrays()

    @property
    def structure(self) -> Self:
        """The same places without values: what `with_values` completes."""
        return self.replace(values=None)

    def with_values(self, values: jax.Array) -> Self:
        """The same places with other values."""
        return self.replace(values=values)

    def replace(self, **fields) -> Self:
        """A copy with other fields; nothing is checked."""
        return _rebuild(type(self), {**_fields(self), **fields})

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
            dense = xla.todense(values, *index, layout=self.layout)
            return dense if scales is None else dense.astype(scales.dtype) * scales

        for _ in self.batch_shape:
            matrix = jax.vmap(matrix)
        batch = len(self.batch_shape)
        stacked = View(
            self.shape,
            tuple(range(batch)),
            tuple(axis + batch for axis in self.view.inputs),
            tuple(axis + batch for axis in self.view.outputs),
        )
        return stacked.leaf(matrix(self.values, self.scales, *self.index))

    def __repr__(self) -> str:
        values = self.values
        kind = getattr(values, "dtype", type(values).__name__)
        try:
            return f"{type(self).__name__}{self._describe()}(shape={self.shape}, {kind})"
        except (AttributeError, TypeError, IndexError):  # a tree of something else than arrays
            return f"{type(self).__name__}({self._children()})"

    def _describe(self) -> str:
        return f"[{self.density:.1%}]"


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class BlockSparse(Packed):
    """A weight in blocks of bk inputs by bn outputs, ordered by block column (BSC).

    Attributes:
      values: (nnz, bk, bn). Blocks at the lower and right edge may reach over it.
      indptr: (ceil(N/bn) + 1,) int32; block column j is
        values[indptr[j]:indptr[j + 1]], and from indptr[-1] on there is only spare room.
      rows: (nnz,) int32, the block rows, strictly increasing within a column.
      block: (bk, bn).
      view: the shape (K, N), or the View of a kernel of another shape.
      scales: (N,), for int8 values: W = values * scales.

    Raises:
      ValueError: for indices out of range or out of order, and shapes that do
        not fit (checked where the arrays are concrete).
    """

    values: Any
    indptr: Any
    rows: Any
    block: tuple[int, int]
    view: Any
    scales: Any = None
    array_names = ("values", "indptr", "rows", "scales")

    @property
    def layout(self) -> BlockLayout:
        return BlockLayout(self.matrix_shape, self.block, self.rows.shape[-1])

    def _check_index(self, indptr, rows):
        indices.check_columns(
            indptr, rows, self.layout.grid, f"{self.block[0]}x{self.block[1]} block"
        )

    def _describe(self):
        return f"[{self.block[0]}x{self.block[1]}, {self.density:.1%}]"


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class CSC(Packed):
    """A weight in compressed sparse columns.

    Attributes:
      values: (nnz,).
      indptr: (N + 1,) int32; column j is values[indptr[j]:indptr[j + 1]], and
        from indptr[-1] on there is only spare room.
      rows: (nnz,) int32, or uint16 where K is at most 65536; strictly
        increasing within a column.
      view: the shape (K, N), or the View of a kernel of another shape.
      scales: (N,), for int8 values: W = values * scales.

    Raises:
      ValueError: for indices out of range or out of order, and shapes that do
        not fit (checked where the arrays are concrete).
    """

    values: Any
    indptr: Any
    rows: Any
    view: Any
    scales: Any = None
    array_names = ("values", "indptr", "rows", "scales")

    @property
    def layout(self) -> CSCLayout:
        return CSCLayout(self.matrix_shape, self.rows.shape[-1])

    def _check_index(self, indptr, rows):
        indices.check_columns(indptr, rows, self.matrix_shape, "weight")


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class NMSparse(Packed):
    """A weight that keeps n of every m consecutive inputs.

    Attributes:
      values: (ceil(K/m) * n, N); row g*n + i is the i-th weight kept of group g.
      positions: uint32 (words, ceil(N/columns)); see `NMLayout` for the bits.
      n: weights stored in a group.
      m: inputs in a group.
      view: the shape (K, N), or the View of a kernel of another shape.
      columns: consecutive outputs that share their positions. With all of them,
        the product is one dense product with the columns of x it needs.
      scales: (N,), for int8 values: W = values * scales.

    Raises:
      ValueError: for positions out of range or named twice in a group, and
        shapes that do not fit (checked where the arrays are concrete).
    """

    values: Any
    positions: Any
    n: int
    m: int
    view: Any
    columns: int = 1
    scales: Any = None
    array_names = ("values", "positions", "scales")

    @property
    def layout(self) -> NMLayout:
        return NMLayout(self.matrix_shape, self.n, self.m, self.columns)

    def _check_index(self, words):
        found = indices.unpack_positions(words, self.layout)
        indices.check_positions(found, self.n, self.m)

    def _describe(self):
        return f"[{self.n}:{self.m}]"


def _fields(packed):
    return {f.name: getattr(packed, f.name) for f in dataclasses.fields(packed)}


def _rebuild(kind, fields):
    packed = object.__new__(kind)
    for name, value in fields.items():
        object.__setattr__(packed, name, value)
    return packed


def _register(kind):
    arrays = kind.array_names
    static = tuple(f.name for f in dataclasses.fields(kind) if f.name not in arrays)

    def aux(packed):
        return tuple(getattr(packed, name) for name in static)

    def unflatten(aux, children):
        return _rebuild(kind, dict(zip(static + arrays, (*aux, *children), strict=True)))

    def flatten_with_keys(packed):
        keys = map(jax.tree_util.GetAttrKey, arrays)
        return tuple(zip(keys, packed._children(), strict=True)), aux(packed)

    jax.tree_util.register_pytree_with_keys(
        kind, flatten_with_keys, unflatten, lambda packed: (packed._children(), aux(packed))
    )

    def serialize(aux):
        fields = dict(zip(static, aux, strict=True))
        return json.dumps(fields | {"view": dataclasses.asdict(fields["view"])}).encode()

    def deserialize(data):
        fields = as_tuples(json.loads(bytes(data)))
        return tuple((fields | {"view": View(**fields["view"])})[name] for name in static)

    # `jax.export` writes the trees that a function takes and returns into its file.
    jax.export.register_pytree_node_serialization(
        kind,
        serialized_name=f"jaxsparse.{kind.__name__}",
        serialize_auxdata=serialize,
        deserialize_auxdata=deserialize,
    )


def as_tuples(node: Any) -> Any:
    """JSON with its lists turned back into the tuples that they were."""
    if isinstance(node, dict):
        return {key: as_tuples(value) for key, value in node.items()}
    return tuple(map(as_tuples, node)) if isinstance(node, list) else node


for _kind in (BlockSparse, CSC, NMSparse):
    _register(_kind)


def is_packed(node: Any) -> bool:
    """Whether a node of a tree is a packed weight; for `is_leaf`."""
    return isinstance(node, Packed)


def split_packed(params: Tree) -> tuple[Tree, Tree]:
    """Takes a tree of parameters apart into what is learned and where it belongs.

    Args:
      params: a tree of arrays and packed weights.

    Returns:
      values, the tree with an array of values for every packed weight, which
      `jax.grad` and optax take as any other; and structure, the tree with the
      packed weights' places and None for everything else.

    Example:
      >>> import jax, jax.numpy as jnp, jaxsparse as js
      >>> params = {"kernel": js.pack(jnp.eye(8), js.Block(4, 4)), "bias": jnp.zeros(8)}
      >>> values, structure = js.split_packed(params)
      >>> def loss(values):
      ...     params = js.merge_packed(values, structure)
      ...     return jnp.sum(js.sparse_dot(jnp.ones(8), params["kernel"]) + params["bias"])
      >>> jax.grad(loss)(values)["kernel"].shape
      (2, 4, 4)
    """
    values = jax.tree.map(lambda p: p.values if is_packed(p) else p, params, is_leaf=is_packed)
    structure = jax.tree.map(
        lambda p: p.structure if is_packed(p) else None, params, is_leaf=is_packed
    )
    return values, structure


def merge_packed(values: Tree, structure: Tree) -> Tree:
    """Undoes `split_packed`."""
    return jax.tree.map(
        lambda place, value: value if place is None else place.with_values(value),
        structure,
        values,
        is_leaf=lambda node: node is None or is_packed(node),
    )
