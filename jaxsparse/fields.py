"""What a packed weight is besides its arrays, as JSON: written, and checked when read.

Nothing that is read is believed: every field and every array's shape and dtype is
checked against the others before a single array is made.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxsparse.arrays import CSC, Bitmap, BlockSparse, NMSparse
from jaxsparse.packed import MAX_AXIS, OPTIONAL, Packed
from jaxsparse.tensorfile import shorten, whole, wholes
from jaxsparse.views import View

KINDS = {kind.__name__: kind for kind in (Bitmap, BlockSparse, CSC, NMSparse)}
_SHORT_ROWS = 65536  # what uint16 rows can say
_INDEX_DTYPES = {
    "indptr": ("int32",),
    "rows": ("int32", "uint16"),
    "starts": ("int32",),
    "bits": ("uint32",),
    "positions": ("uint32",),
    "held": ("uint32",),
}


def to_json(packed: Packed) -> dict[str, Any]:
    """The fields that are no arrays, and the kind: JSON once tuples are lists.

    >>> import jax.numpy as jnp, jaxsparse as js
    >>> fields = to_json(js.pack(jnp.eye(8), js.Block(4, 4)))
    >>> fields["kind"], fields["block"], fields["view"]["shape"]
    ('BlockSparse', [4, 4], [8, 8])
    """
    static = {
        f.name: getattr(packed, f.name)
        for f in dataclasses.fields(packed)  # pyright: ignore[reportArgumentType]
        if f.name not in packed.array_names
    }
    view = {name: list(map(int, axes)) for name, axes in vars(static.pop("view")).items()}
    listed = {k: list(map(int, v)) if isinstance(v, tuple) else int(v) for k, v in static.items()}
    return {"kind": type(packed).__name__, **listed, "view": view}


def kind_of(fields: Any) -> type[Packed]:
    """The class that the fields speak of.

    Raises:
      ValueError: there is none; names the field.
    """
    if not isinstance(fields, dict):
        raise ValueError(f"the fields are {shorten(fields)}, not an object")
    name = fields.get("kind")
    if not isinstance(name, str) or name not in KINDS:
        raise ValueError(f"field 'kind': {shorten(name)} is none of {', '.join(KINDS)}")
    return KINDS[name]


def from_json(
    fields: Mapping[str, Any], arrays: Mapping[str, jax.Array | np.ndarray | jax.ShapeDtypeStruct]
) -> Packed:
    """The packed weight of these fields and of arrays that may be abstract.

    Args:
      fields: as `to_json` gives them.
      arrays: by name, those of the kind; `scales` and `held` may be missing.

    Raises:
      ValueError: a field, a shape or a dtype is not what it must be; names the field.
        The numbers in index arrays are what a packed weight checks when it is made.
    """
    kind = kind_of(fields)
    static = {f.name for f in dataclasses.fields(kind)} - set(kind.array_names) | {"kind"}  # pyright: ignore[reportArgumentType]
    if unknown := sorted(set(fields) - static):
        raise ValueError(f"field {shorten(unknown[0])}: a {kind.__name__} has no such field")
    checked: dict[str, Any] = {"view": _view(fields.get("view"))}
    for name in sorted(static - {"kind", "view"}):
        checked[name] = _CHECKS[name](name, fields.get(name))
    if kind is NMSparse and checked["n"] > checked["m"]:
        raise ValueError(f"field 'n': {checked['n']} of every {checked['m']} cannot be kept")
    for name in kind.array_names:
        if name not in arrays and name not in OPTIONAL:
            raise ValueError(f"field {name!r}: there is no such array")
    for name, array in arrays.items():
        _check_dtype(name, np.dtype(array.dtype), checked["view"], "scales" in arrays)
        if array.ndim == 0:
            raise ValueError(f"field {name!r}: an array without axes")
    packed = object.__new__(kind)
    for name, value in {**dict.fromkeys(kind.array_names), **checked, **arrays}.items():
        object.__setattr__(packed, name, value)
    packed.check_shapes()
    return packed


def _view(fields: Any) -> View:
    names = [f.name for f in dataclasses.fields(View)]
    if not isinstance(fields, dict) or set(fields) != set(names):
        raise ValueError(f"field 'view': {shorten(fields)} must have {', '.join(names)}")
    shape = wholes("view.shape", fields["shape"], 0, MAX_AXIS)
    axes = {
        name: wholes(f"view.{name}", fields[name], 0, len(shape) - 1)
        for name in ("batch", "inputs", "outputs")
    }
    if axes["batch"] or sorted(axes["inputs"] + axes["outputs"]) != list(range(len(shape))):
        raise ValueError(
            f"field 'view': inputs {list(axes['inputs'])} and outputs {list(axes['outputs'])} must "
            f"name every axis of {list(shape)} once, batch {list(axes['batch'])} none"
        )
    return View(shape, **axes)


def _block(name: str, value: Any) -> tuple[int, ...]:
    block = wholes(name, value, 1, MAX_AXIS)
    if len(block) != 2:
        raise ValueError(f"field {name!r}: {list(block)} must be rows and columns")
    return block


def _count(name: str, value: Any) -> int:
    return whole(name, value, 1, MAX_AXIS)


_CHECKS = {"block": _block, "n": _count, "m": _count, "columns": _count, "nnz": _count}


def _check_dtype(name: str, dtype: np.dtype, view: View, quantized: bool) -> None:
    if name in _INDEX_DTYPES:
        fits, needed = dtype.name in _INDEX_DTYPES[name], " or ".join(_INDEX_DTYPES[name])
        if dtype == np.uint16 and view.matrix_shape[0] > _SHORT_ROWS:
            fits, needed = False, f"int32 above {_SHORT_ROWS} inputs"
    elif name == "scales":
        fits, needed = jnp.issubdtype(dtype, jnp.floating), "floating"
    elif name == "values":
        fits, needed = not quantized or dtype == np.int8, "int8, for there are scales"
    else:
        raise ValueError(f"field {shorten(name)}: there is no such array")
    if not fits:
        raise ValueError(f"field {name!r}: an array of {dtype.name}; it must be {needed}")
