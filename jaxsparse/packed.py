"""What packed weights have in common, and trees of them.

A packed weight is a pytree of `values`, of `scales` where they are quantized, and of
the index arrays that say where the values belong. It remembers the axes of the leaf
it came from, so that a convolution or an attention kernel unpacks to its own shape.
"""

import dataclasses
import math
import operator
from typing import Any, ClassVar, NoReturn, Self, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxsparse.kernels.layouts import Layout
from jaxsparse.registration import exportable
from jaxsparse.views import View

Tree = Any
WORD = 32  # bits of a word of `held`
OPTIONAL = ("scales", "held")  # arrays that most packed weights do not have
PackedKind = TypeVar("PackedKind", bound="Packed")
MAX_AXIS = 2**31 - 1  # indices are int32
MAX_SIZE = 2**45  # beyond any memory; far below where sizes in bytes overflow


class Packed:
    """What the packed weights have in common. Construct one of the subclasses."""

    values: Any  # None in a structure
    scales: Any  # None unless quantized
    held: Any = None  # bits of the values that stay zero, where there are any
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
            getattr(self, name) for name in self.array_names if name not in ("values", *OPTIONAL)
        )

    def _check(self):
        self.check_shapes()
        stack = math.prod(self.batch_shape)
        flat = [np.asarray(a).reshape(stack, *a.shape[len(self.batch_shape) :]) for a in self.index]
        for arrays in zip(*flat, strict=True):
            self._check_index(*arrays)

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
        index = [n for n in self.array_names if n not in expected]
        expected |= dict(zip(index, layout.index_shapes, strict=True))
        for name, shape in expected.items():
            array = getattr(self, name)
            if array is not None and array.shape != batch + shape:
                raise ValueError(
                    f"{type(self).__name__} of shape {self.shape}: {name} has shape "
                    f"{array.shape}, needs {batch + shape}."
                )

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
        """The same places with other values; what a mask left out there stays zero."""
        arrays = jax.Array | np.ndarray
        if isinstance(values, arrays) and isinstance(self.held, arrays):
            values = _zero_where(self.held, values)
        return self.replace(values=values)

    @property
    def learned(self) -> jax.Array:
        """The values; no gradient passes through this to those that stay zero."""
        if self.held is None or not jnp.issubdtype(self.values.dtype, jnp.floating):
            return self.values
        return _learned(self.values, self.held)

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
            dense = self.layout.todense(values, *index)
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
        return stacked.leaf(matrix(self.learned, self.scales, *self.index))

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


def hold(lost: np.ndarray) -> np.ndarray | None:
    """Bits of the values that stay zero: uint32 words (..., ceil(size / 32)), lowest first.

    Args:
      lost: boolean (stack, *values_shape).

    Returns:
      None where no value is lost.
    """
    if not lost.any():
        return None
    flat = lost.reshape(len(lost), -1)
    flat = np.pad(flat, ((0, 0), (0, -flat.shape[1] % WORD)))
    return np.packbits(flat, axis=1, bitorder="little").view("<u4")


def _zero_where(held, values):
    stack = held.shape[:-1]
    bits = (jnp.asarray(held)[..., None] >> jnp.arange(WORD, dtype=jnp.uint32)) & 1 == 1
    shape = values.shape[len(stack) :]
    bits = bits.reshape(*stack, -1)[..., : math.prod(shape)].reshape(values.shape)
    return jnp.where(bits, jnp.zeros((), values.dtype), values)


# Nothing in a forward pass: the values held are zero already.
@jax.custom_jvp
def _learned(values, held):
    del held
    return values


@_learned.defjvp
def _learned_jvp(primals, tangents):
    values, held = primals
    return _learned(values, held), _zero_where(held, tangents[0])  # for the next derivative too


def _fields(packed):
    return {f.name: getattr(packed, f.name) for f in dataclasses.fields(packed)}


def _rebuild(kind, fields):
    packed = object.__new__(kind)
    for name, value in fields.items():
        object.__setattr__(packed, name, value)
    return packed


def register(kind: type[PackedKind]) -> type[PackedKind]:
    """Makes a storage a pytree, one that `jax.export` can write into its files."""
    arrays = kind.array_names
    static = tuple(f.name for f in dataclasses.fields(kind) if f.name not in arrays)  # pyright: ignore[reportArgumentType]

    # Every call with a packed argument flattens it: one step, not a loop.
    fields_of = operator.attrgetter(*static, *arrays)

    def flatten(packed):
        fields = fields_of(packed)
        return fields[len(static) :], fields[: len(static)]

    def unflatten(aux, children):
        return _rebuild(kind, dict(zip(static + arrays, (*aux, *children), strict=True)))

    def flatten_with_keys(packed):
        children, aux = flatten(packed)
        return tuple(zip(map(jax.tree_util.GetAttrKey, arrays), children, strict=True)), aux

    jax.tree_util.register_pytree_with_keys(kind, flatten_with_keys, unflatten, flatten)

    makers = dict.fromkeys(static, lambda value: value)
    exportable(kind, makers | {"view": lambda fields: View(**fields)})
    return kind


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
