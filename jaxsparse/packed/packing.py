"""From masked weights to packed ones, and back."""

import math
import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, DTypeLike, Num

from jaxsparse.packed.base import Packed, is_packed
from jaxsparse.packed.fields import KINDS
from jaxsparse.packed.quantize import convert
from jaxsparse.patterns.base import Pattern
from jaxsparse.patterns.rules import Rule, check_rules, resolve
from jaxsparse.patterns.views import View, view_of
from jaxsparse.trees import leaves_by_path, near_misses, replace_by_path

Tree = Any


def pack(
    weight: Num[Array | np.ndarray, "*shape"],
    pattern: Pattern,
    mask: Bool[Array | np.ndarray, "*shape"] | None = None,
    *,
    in_axis=None,
    out_axis=None,
    batch_axis=None,
    dtype: DTypeLike | None = None,
    columns: int = 1,
    storage: type[Packed] | None = None,
) -> Packed:
    """Stores only what survives of a weight.

    | pattern | array |
    |---|---|
    | `Block(rows, columns)` | `BlockSparse` with blocks rows x columns |
    | `NM(n, m)` | `NMSparse` |
    | `Unstructured()` | `Bitmap` where a fifth or more is kept, `CSC` below |
    | `Channel(axis)` | `BlockSparse` 1x16 for an input axis, as above for an output axis |

    The pattern is that of the storage and need not be the one pruned with: a
    block is stored where any entry of it survives. What a mask prunes inside a
    stored block or group is stored as zero and stays zero in training: the packed
    weight remembers it in a bit for every value (`held`), where there is any such.

    Args:
      weight: the kernel. It may be traced if `mask` is given.
      pattern: what is stored together; sizes need not be multiples of it.
      mask: True where the weight survives; None for its nonzero entries. Entries
        masked out are zero, also NaN and infinite ones. Give the mask where an
        entry that survives may be zero: it can be trained, a masked one cannot.
      in_axis: the axes summed over by a product, as in `Rule`.
      out_axis: the axes that a product ends in, as in `Rule`.
      batch_axis: leading axes along which kernels are stacked, as in `Rule`.
      dtype: dtype of the values; None for the weight's. With a floating one they are
        cast. With int8 every output column has a float32 scale, and its largest entry
        becomes 127; a traced column that holds NaN or an infinity is NaN altogether.
      columns: for `NM`, how many consecutive outputs share their positions.
      storage: the class of the array, where another than the table's is meant: `CSR` or `CSC`
        for `Unstructured()`. `CSR` skips zeros of x in products of up to eight rows.

    Returns:
      The packed weight; `unpack` returns `where(mask, weight, 0)` exactly,
      unless `dtype` rounds.

    Raises:
      TypeError: the weight is no array of numbers.
      ValueError: a group of an N:M pattern keeps more than n entries; the mask
        has another shape; a batch axis does not lead; `dtype` cannot hold the
        entries kept (an integer other than int8, NaN in int8, 1e6 in float16); `storage`
        does not store the pattern.

    Example:
      >>> import jax.numpy as jnp, jaxsparse as js
      >>> weight = jnp.zeros((64, 64)).at[:4, :16].set(1.0)
      >>> packed = js.pack(weight, js.Block(4, 16))
      >>> packed.values.shape, packed.nbytes
      ((1, 4, 16), 280)
    """
    _check_numbers(weight)
    view = view_of("the weight", weight.shape, in_axis, out_axis, batch_axis)
    return pack_view(weight, pattern, mask, view, dtype=dtype, columns=columns, storage=storage)


def _check_numbers(weight) -> None:
    dtype: Any = getattr(weight, "dtype", None)
    numbers = dtype is not None and any(jnp.issubdtype(dtype, k) for k in (np.bool_, np.number))
    if not numbers or dtype in (np.longdouble, np.clongdouble):
        raise TypeError(
            f"a {type(weight).__name__}{'' if dtype is None else f' of {dtype}'} cannot be packed; "
            f"an array of numbers that JAX knows would work"
        )


def unpack(packed: Packed | Array) -> Array:
    """The dense weight of a packed one; anything else is returned as it is."""
    return packed.todense() if isinstance(packed, Packed) else packed


def unpack_params(params: Tree) -> Tree:
    """The tree with every packed weight dense again."""
    return jax.tree.map(unpack, params, is_leaf=is_packed)


def pack_params(
    params: Tree,
    masks: Tree,
    rules: Sequence[Rule],
    *,
    dtype: DTypeLike | None = None,
    storage: Mapping[str, type[Packed]] = MappingProxyType({}),
) -> Tree:
    """Packs every leaf that a rule names, each by the rule's own pattern.

    `sparsify` runs a model on the tree. To train it, take it apart by `split_packed`:
    where values belong is integers, which `jax.grad` of the whole tree refuses.

    Args:
      params: any Flax or plain tree.
      masks: `{"slash/path": mask}` or a tree like `params` with None where dense;
        a leaf without a mask keeps its nonzero entries.
      rules: those that the model was pruned by.
      dtype: as in `pack`.
      storage: by regular expressions of whole paths, the classes that `pack` is to store the
        leaves in, as in `{".*/down/kernel": js.CSR}`; the first that matches.

    Returns:
      The tree with packed weights in the place of these leaves.

    Raises:
      ValueError, TypeError: a rule matches no leaf, a mask has no rule, an expression of
        `storage` matches no leaf of a rule, or a weight cannot be packed; the path is quoted.

    Example:
      >>> import jax.numpy as jnp, jaxsparse as js
      >>> params = {"up": {"kernel": jnp.eye(64), "bias": jnp.zeros(64)}}
      >>> rules = [js.Rule(r".*/kernel", js.Block(4, 16), sparsity=0.9)]
      >>> masks = js.compute_masks(params, rules)
      >>> js.pack_params(params, masks, rules)["up"]["kernel"]
      BlockSparse[4x16, 9.4%](shape=(64, 64), float32)
    """
    specs = resolve(check_rules(rules), params)
    leaves, given = leaves_by_path(params), leaves_by_path(masks)
    for path in given:
        if path not in specs:
            raise ValueError(
                f"mask for {path!r}, but no rule for it ({near_misses(path, specs)}); masks "
                "without it, {path: masks[path] for path in packed}, or a rule for it would work"
            )
    for expression in storage:
        if not any(re.fullmatch(expression, path) for path in specs):
            raise ValueError(
                f"storage for {expression!r}, but no rule packs such a leaf "
                f"({near_misses(expression, specs)})"
            )
    packed = {}
    for path, spec in specs.items():
        kind = next((kind for e, kind in storage.items() if re.fullmatch(e, path)), None)
        try:
            mask = given.get(path)
            _check_numbers(leaves[path])
            packed[path] = pack_view(
                leaves[path], spec.pattern, mask, spec.view, dtype=dtype, storage=kind
            )
        except (TypeError, ValueError) as error:
            kind = TypeError if isinstance(error, TypeError) else ValueError
            raise kind(f"{path!r} of shape {np.shape(leaves[path])}: {error}") from error
    return replace_by_path(params, packed)


def pack_view(weight, pattern, mask, view: View, *, dtype=None, columns=1, storage=None) -> Packed:
    """`pack` for a weight whose axes are known."""
    stored = pattern.storage(view)
    storage = storage_of(stored) if storage is None else _named(storage, stored)
    if mask is not None and mask.shape != weight.shape:
        raise ValueError(f"the mask has shape {mask.shape}, the weight {weight.shape}.")
    if view.batch != tuple(range(len(view.batch))):
        raise ValueError(
            f"the batch axes {view.batch} of a weight of shape {view.shape} must be its first ones "
            "to be packed; move them there."
        )
    kept = np.asarray(weight != 0 if mask is None else mask).astype(bool)
    # Only a traced weight needs JAX; the host packs without compiling anything.
    xp = jnp if isinstance(weight, Tracer) else np
    matrix, kept = view.matrix(xp.asarray(weight)), view.matrix(kept)
    matrix = xp.where(kept, matrix, xp.zeros((), matrix.dtype))
    stack = math.prod(view.batch_shape)
    if not stack:  # a slice shows what the arrays of none look like
        matrix, kept = (
            a.zeros((1, *matrix.shape[-2:]), b.dtype) for a, b in ((xp, matrix), (np, kept))
        )
    flat, kept = (a.reshape(max(stack, 1), *a.shape[-2:]) for a in (matrix, kept))
    flat, scales = convert(flat, dtype, xp)
    kind, arrays, static = storage.store(flat, kept, xp, pattern=stored, columns=columns)
    if scales is not None:
        arrays["scales"] = scales
    arrays = {
        name: jnp.asarray(a[:stack]).reshape(*view.batch_shape, *a.shape[1:])
        for name, a in arrays.items()
    }
    return kind(**arrays, **static, view=view.slice)


def storage_of(pattern: Pattern) -> type[Packed]:
    """The class that stores weights by a pattern: that of its class, or of the nearest base.

    Raises:
      TypeError: there is none.
    """
    for base in type(pattern).__mro__:
        for kind in KINDS.values():
            if kind.stores is base:
                return kind
    raise TypeError(f"{pattern!r} is not a pattern that a weight can be stored by.")


def _named(storage: Any, pattern: Pattern) -> type[Packed]:
    """The storage asked for, which has to store the pattern."""
    fitting = [
        kind
        for kind in KINDS.values()
        if any(k in type(pattern).__mro__ for k in (kind.stores, kind.on_demand))
    ]
    if storage not in fitting:
        names = ", ".join(kind.__name__ for kind in fitting)
        raise ValueError(
            f"storage={getattr(storage, '__name__', storage)} does not store {pattern}; {names} "
            "would work"
        )
    return storage


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
