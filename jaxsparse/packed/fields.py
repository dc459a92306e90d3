"""What a packed weight is besides its arrays, as JSON: written, and checked when read.

Nothing that is read is believed: every field and every array's shape and dtype is
checked against the others before a single array is made.
"""

import dataclasses
import typing
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxsparse.packed.base import MAX_AXIS, OPTIONAL, SHORT_ROWS, Packed, rebuild
from jaxsparse.patterns.views import View
from jaxsparse.text import shorten, whole, wholes

KINDS: dict[str, type[Packed]] = {}  # the storages by name, entered when they are registered


def to_json(packed: Packed) -> dict[str, Any]:
    """The fields that are no arrays, and the kind: JSON once tuples are lists.

    >>> import jax.numpy as jnp, jaxsparse as js
    >>> fields = to_json(js.pack(jnp.eye(8), js.Block(4, 4)))
    >>> fields["kind"], fields["block"], fields["view"]["shape"]
    ('BlockSparse', [4, 4], [8, 8])
    """
    static = {
        f.name: getattr(packed, f.name)
        for f in dataclasses.fields(packed)
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


def from_json(fields: Mapping[str, Any], arrays: Mapping[str, Any]) -> Packed:
    """The packed weight of these fields and of arrays that may be abstract.

    Args:
      fields: as `to_json` gives them.
      arrays: by name, those of the kind; `scales` and `held` may be missing.

    Raises:
      ValueError: a field, a shape or a dtype is not what it must be; names the field.
        The numbers in index arrays are what a packed weight checks when it is made.
    """
    kind = kind_of(fields)
    types = typing.get_type_hints(kind)
    static = {f.name for f in dataclasses.fields(kind)} - set(kind.array_names) | {"kind"}
    if unknown := sorted(set(fields) - static):
        raise ValueError(f"field {shorten(unknown[0])}: a {kind.__name__} has no such field")
    checked: dict[str, Any] = {"view": _view(fields.get("view"))}
    for name in sorted(static - {"kind", "view"}):
        checked[name] = CHECKS[types[name]](name, fields.get(name))
    for name in kind.array_names:
        if name not in arrays and name not in OPTIONAL:
            raise ValueError(f"field {name!r}: there is no such array")
    for name, array in arrays.items():
        _check_dtype(kind, name, np.dtype(array.dtype), checked["view"], "scales" in arrays)
        if array.ndim == 0:
            raise ValueError(f"field {name!r}: an array without axes")
    packed = rebuild(kind, {**dict.fromkeys(kind.array_names), **checked, **arrays})
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


def _pair(name: str, value: Any) -> tuple[int, ...]:
    pair = wholes(name, value, 1, MAX_AXIS)
    if len(pair) != 2:
        raise ValueError(f"field {name!r}: {list(pair)} must be rows and columns")
    return pair


def _count(name: str, value: Any) -> int:
    return whole(name, value, 1, MAX_AXIS)


CHECKS = {int: _count, tuple[int, int]: _pair}  # by the types of fields that are no arrays


def _check_dtype(
    kind: type[Packed], name: str, dtype: np.dtype, view: View, quantized: bool
) -> None:
    index = {**kind.index_arrays, "held": ("uint32",)}
    if name in index:
        fits, needed = dtype.name in index[name], " or ".join(index[name])
        if dtype == np.uint16 and view.matrix_shape[kind.numbered] > SHORT_ROWS:
            side = ("inputs", "outputs")[kind.numbered]
            fits, needed = False, f"int32 above {SHORT_ROWS} {side}"
    elif name == "scales":
        fits, needed = jnp.issubdtype(dtype, jnp.floating), "floating"
    elif name == "values":
        fits, needed = not quantized or dtype == np.int8, "int8, for there are scales"
    else:
        raise ValueError(f"field {shorten(name)}: there is no such array")
    if not fits:
        raise ValueError(f"field {name!r}: an array of {dtype.name}; it must be {needed}")


def on_device(array: np.ndarray) -> jax.Array | np.ndarray:
    """The array as JAX's, unless JAX would make its 64 bits 32."""
    kept = jax.dtypes.canonicalize_dtype(array.dtype) == array.dtype
    return jnp.asarray(array) if kept else array
