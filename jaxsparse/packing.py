"""From masked weights to packed ones, and back."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, DTypeLike, Float

from jaxsparse import indices
from jaxsparse.arrays import CSC, Bitmap, BlockSparse, NMSparse
from jaxsparse.kernels.layouts import NMLayout
from jaxsparse.nm import NM
from jaxsparse.packed import Packed, hold, is_packed
from jaxsparse.patterns import Block, Channel, Pattern, Unstructured
from jaxsparse.quantize import convert
from jaxsparse.rules import Rule, check_rules, resolve
from jaxsparse.trees import leaves_by_path, near_misses, replace_by_path
from jaxsparse.views import View, view_of

Tree = Any
SHORT_ROWS = 65536  # rows below this fit into uint16
BITMAP_DENSITY = 0.2  # single weights at least this dense have bits instead of rows


def pack(
    weight: Float[Array | np.ndarray, "*shape"],
    pattern: Pattern,
    mask: Bool[Array | np.ndarray, "*shape"] | None = None,
    *,
    in_axis=None,
    out_axis=None,
    batch_axis=None,
    dtype: DTypeLike | None = None,
    columns: int = 1,
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

    Returns:
      The packed weight; `unpack` returns `where(mask, weight, 0)` exactly,
      unless `dtype` rounds.

    Raises:
      TypeError: the weight is no array of numbers.
      ValueError: a group of an N:M pattern keeps more than n entries; the mask
        has another shape; a batch axis does not lead; `dtype` cannot hold the
        entries kept (an integer other than int8, NaN in int8, 1e6 in float16).

    Example:
      >>> import jax.numpy as jnp, jaxsparse as js
      >>> weight = jnp.zeros((64, 64)).at[:4, :16].set(1.0)
      >>> packed = js.pack(weight, js.Block(4, 16))
      >>> packed.values.shape, packed.nbytes
      ((1, 4, 16), 280)
    """
    _check_numbers(weight)
    view = view_of("the weight", weight.shape, in_axis, out_axis, batch_axis)
    return pack_view(weight, pattern, mask, view, dtype=dtype, columns=columns)


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
    params: Tree, masks: Tree, rules: Sequence[Rule], *, dtype: DTypeLike | None = None
) -> Tree:
    """Packs every leaf that a rule names, each by the rule's own pattern.

    Args:
      params: any Flax or plain tree.
      masks: `{"slash/path": mask}` or a tree like `params` with None where dense;
        a leaf without a mask keeps its nonzero entries.
      rules: those that the model was pruned by.
      dtype: as in `pack`.

    Returns:
      The tree with packed weights in the place of these leaves.

    Raises:
      ValueError, TypeError: a rule matches no leaf, a mask has no rule, or a weight
        cannot be packed; the path is quoted.

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
            raise ValueError(f"mask for {path!r}, but no rule for it; {near_misses(path, specs)}")
    packed = {}
    for path, spec in specs.items():
        try:
            mask = given.get(path)
            _check_numbers(leaves[path])
            packed[path] = pack_view(leaves[path], spec.pattern, mask, spec.view, dtype=dtype)
        except (TypeError, ValueError) as error:
            kind = TypeError if isinstance(error, TypeError) else ValueError
            raise kind(f"{path!r} of shape {np.shape(leaves[path])}: {error}") from error
    return replace_by_path(params, packed)


def pack_view(weight, pattern, mask, view: View, *, dtype=None, columns=1) -> Packed:
    """`pack` for a weight whose axes are known."""
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
    matrix, kept = _matrix(xp.asarray(weight), view), _matrix(kept, view)
    matrix = xp.where(kept, matrix, xp.zeros((), matrix.dtype))
    batch, slice_view = matrix.shape[:-2], _slice_view(view)
    stack = math.prod(batch)
    if not stack:  # a slice shows what the arrays of none look like
        matrix, kept = (
            a.zeros((1, *matrix.shape[-2:]), b.dtype) for a, b in ((xp, matrix), (np, kept))
        )
    flat, kept = (a.reshape(max(stack, 1), *a.shape[-2:]) for a in (matrix, kept))
    flat, scales = convert(flat, dtype, xp)
    kind, arrays, static = _store(pattern, view, columns, flat, kept, xp)
    if scales is not None:
        arrays["scales"] = scales
    arrays = {
        name: jnp.asarray(a[:stack]).reshape(*batch, *a.shape[1:]) for name, a in arrays.items()
    }
    return kind(**arrays, **static, view=slice_view)


def _matrix(leaf, view):
    ordered = leaf.transpose(view.batch + view.inputs + view.outputs)
    return ordered.reshape(view.batch_shape + view.matrix_shape)


def _slice_view(view: View) -> View:
    batch = len(view.batch)
    return View(
        view.shape[batch:],
        (),
        tuple(axis - batch for axis in view.inputs),
        tuple(axis - batch for axis in view.outputs),
    )


def _store(pattern, view, columns, *operands) -> tuple[Callable[..., Packed], dict, dict]:
    if isinstance(pattern, Block):
        return _blocks(*operands, block=(pattern.rows, pattern.columns))
    if isinstance(pattern, NM):
        return _groups(*operands, n=pattern.n, m=pattern.m, columns=columns)
    if isinstance(pattern, Channel) and pattern.axis % len(view.shape) in view.inputs:
        return _blocks(*operands, block=(1, 16))
    if isinstance(pattern, Channel | Unstructured):
        return _singles(*operands)
    raise TypeError(f"{pattern!r} is not a pattern that a weight can be packed by.")


def _blocks(flat, kept, xp, *, block):
    (bk, bn), (_, k, n) = block, flat.shape
    padding = (0, 0), (0, -k % bk), (0, -n % bn)
    grid = -(-k // bk), -(-n // bn)

    def tiles(array, pad):
        array = pad(array, padding).reshape(len(array), grid[0], bk, grid[1], bn)
        return array.transpose(0, 1, 3, 2, 4)

    lost, kept = tiles(~kept, np.pad), tiles(kept, np.pad).any((3, 4))
    arrays, place = _columns(tiles(flat, xp.pad), kept, xp)
    return BlockSparse, arrays | _held(place(lost, np)), {"block": block}


def _held(lost):
    words = hold(lost)
    return {} if words is None else {"held": words}


def _singles(flat, kept, xp):
    room = max(int(k.sum()) for k in kept)
    if bitmap_pays(room, flat.shape[1:]):
        return _bits(flat, kept, room, xp)
    arrays, _ = _columns(flat, kept, xp)
    if flat.shape[1] <= SHORT_ROWS:
        arrays["rows"] = arrays["rows"].astype(np.uint16)
    return CSC, arrays, {}


def bitmap_pays(nnz: int, shape: tuple[int, int]) -> bool:
    """Whether single weights are better stored as `Bitmap` than as `CSC`."""
    return nnz > 0 and nnz >= BITMAP_DENSITY * (shape[0] * shape[1])


def _bits(flat, kept, room, xp):
    starts, bits, rows, columns = zip(*(indices.bitmap_index(k) for k in kept), strict=True)
    place = np.zeros((2, len(kept), room), np.int64)
    spare = np.ones((len(kept), room), bool)
    for stack, found in enumerate(zip(rows, columns, strict=True)):
        place[:, stack, : len(found[0])] = found
        spare[stack, : len(found[0])] = False
    values = flat[np.arange(len(kept))[:, None], place[0], place[1]]
    values = xp.where(spare, xp.zeros((), values.dtype), values)
    arrays = {"values": values, "starts": np.stack(starts), "bits": np.stack(bits)}
    return Bitmap, arrays, {"nnz": room}


def _columns(tiles, kept, xp) -> tuple[dict[str, Any], Callable]:
    """The arrays of what is kept, and a function that stores other tiles in the same places."""
    # Slices of a stack keep different numbers; the largest makes room for all.
    # A weight that keeps nothing has room for one: orbax stores no empty array.
    room = max(1, *(int(k.sum()) for k in kept))
    index = [indices.column_index(k, room) for k in kept]
    indptr, rows = (np.stack([i[part] for i in index]) for part in (0, 1))
    columns = np.stack([indices.expand_columns(i, room) for i in indptr])
    spare = columns == kept.shape[2]
    stack = np.arange(len(kept))[:, None]

    def place(tiles, xp):
        if not tiles.size:  # no tile to fill the room for one with
            return xp.zeros((len(kept), room, *tiles.shape[3:]), tiles.dtype)
        values = tiles[stack, rows, np.where(spare, 0, columns)]
        return xp.where(
            spare.reshape(*spare.shape, *[1] * (values.ndim - 2)),
            xp.zeros((), values.dtype),
            values,
        )

    return {"values": place(tiles, xp), "indptr": indptr, "rows": rows}, place


def _groups(flat, kept, xp, *, n, m, columns):
    batch, k, width = flat.shape
    flat = xp.pad(flat, ((0, 0), (0, -k % m), (0, 0)))
    lost = np.pad(~kept, ((0, 0), (0, -k % m), (0, 0)))
    kept = np.pad(kept, ((0, 0), (0, -k % m), (0, -width % columns)))
    groups, sets = -(-k // m), -(-width // columns)
    shared: Any = kept.reshape(batch, groups * m, sets, columns).any(axis=3)
    counts: Any = shared.reshape(batch, groups, m, sets).sum(axis=2)
    if (counts > n).any():
        stack, group, column = (int(axis[0]) for axis in np.nonzero(counts > n))
        sharing = f" shared by {columns} columns" if columns > 1 else ""
        raise ValueError(
            f"group {group} (inputs {group * m} to {group * m + m - 1}) of column "
            f"{column * columns} keeps {counts[stack, group, column]} entries, {n}:{m}{sharing} "
            f"stores {n}; prune with NM({n}, {m}) first."
        )
    positions = np.stack([indices.group_positions(s, n, m) for s in shared])
    layout = NMLayout((k, width), n, m, columns)
    words = np.stack([layout.encode(p) for p in positions])
    wide = np.repeat(positions, columns, axis=2)[:, :, :width]
    rows = wide + (np.arange(wide.shape[1]) // n * m)[:, None]
    values = xp.take_along_axis(flat, rows, axis=1)
    static = {"n": n, "m": m, "columns": columns}
    arrays = {"values": values, "positions": words}
    return NMSparse, arrays | _held(np.take_along_axis(lost, rows, axis=1)), static
