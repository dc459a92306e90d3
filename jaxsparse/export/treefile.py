"""A tree as tensors and JSON: what goes into a safetensors file, and comes out of it.

All that can be refused is refused while a file is planned, before any of it is
written, and while its header is read, before any array is made.
"""

import dataclasses
import json
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from jaxsparse.export import tensorfile
from jaxsparse.export.tensorfile import Entry
from jaxsparse.packed import fields as packed_fields
from jaxsparse.packed.base import Packed, is_packed
from jaxsparse.packed.fields import on_device
from jaxsparse.text import shorten

PACKED, TREE = "jaxsparse", "jaxsparse.tree"
_TREE_FIELDS = {"numbers": dict, "none": list, "prng": dict, "dtypes": dict, "keys": dict}
_NUMBERS = {kind.__name__: kind for kind in (bool, int, float)}
# Stored as bytes, along an axis more, for the format has no name that every reader knows.
_NAMELESS = (
    *("complex64", "complex128", ml_dtypes.int4, ml_dtypes.uint4),
    *(ml_dtypes.float8_e4m3, ml_dtypes.float8_e4m3fnuz, ml_dtypes.float8_e5m2fnuz),
    *(ml_dtypes.float8_e4m3b11fnuz, ml_dtypes.float8_e3m4, ml_dtypes.float8_e8m0fnu),
)
_AS_BYTES = {np.dtype(kind).name: np.dtype(kind) for kind in _NAMELESS}
_FOUR_BITS = ("int4", "uint4")


class Plan:
    """What a file will hold; all that can be refused is refused while it is made."""

    def __init__(self):
        self.tensors: dict[str, jax.Array | np.ndarray] = {}
        self.packed: dict[str, dict[str, Any]] = {}
        self.tree: dict[str, Any] = {name: kind() for name, kind in _TREE_FIELDS.items()}

    @property
    def metadata(self) -> dict[str, str]:
        """What belongs into the file beside the tensors."""
        tree = {name: part for name, part in self.tree.items() if part}
        return {PACKED: json.dumps(self.packed)} | ({TREE: json.dumps(tree)} if tree else {})

    def add(self, keys: tuple[str, ...], leaf: Any) -> None:
        """Plans a leaf at the path that the keys make."""
        path = "/".join(keys)
        if is_packed(leaf):
            self._add_packed(path, leaf)
        elif leaf is None:
            self.tree["none"].append(path)
        elif type(leaf) in _NUMBERS.values():
            self.tree["numbers"][path] = [type(leaf).__name__, repr(leaf)]
        elif isinstance(leaf, jax.Array | np.ndarray | np.generic):
            self._add_array(path, leaf)
        elif callable(leaf):
            return
        else:
            raise TypeError(
                f"{path!r} is a {type(leaf).__name__}, {shorten(leaf)}; arrays, packed weights, "
                f"PRNG keys, Python's bool, int and float, and None can be stored"
            )
        if list(keys) != path.split("/"):
            self.tree["keys"][path] = list(keys)

    def _add_packed(self, path: str, leaf: Packed) -> None:
        arrays = {p: a for p in leaf.array_names if (a := getattr(leaf, p)) is not None}
        fields = packed_fields.to_json(leaf)
        try:
            packed_fields.from_json(fields, arrays)
        except ValueError as error:
            raise ValueError(f"{path!r}, {leaf!r}, cannot be stored: {error}") from error
        self.packed[path] = fields
        for part, array in arrays.items():
            self._add_array(f"{path}.{part}", array)

    def _add_array(self, name: str, array: Any) -> None:
        if name in self.tensors or name == tensorfile.METADATA:
            raise ValueError(f"two tensors would be called {name!r}; rename one of the leaves")
        if jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
            if not isinstance(impl := jax.random.key_impl(array), str):
                raise TypeError(f"{name!r} is a PRNG key of a kind without a name, {impl!r}")
            self.tree["prng"][name] = impl
            array = jax.random.key_data(array)
        dtype = np.dtype(array.dtype).newbyteorder("=")
        if dtype.name in _AS_BYTES:
            self.tree["dtypes"][name] = dtype.name
            data = np.ascontiguousarray(array, dtype).reshape(*array.shape, 1)
            if dtype.name in _FOUR_BITS:  # JAX leaves the upper half of a byte as it likes
                data = data.astype(np.int8)
            self.tensors[name] = data.view(np.uint8)
        elif tensorfile.writes(dtype):
            self.tensors[name] = array if isinstance(array, jax.Array) else np.asarray(array, dtype)
        else:
            raise TypeError(f"{name!r} is of dtype {array.dtype}, which cannot be stored; cast it")


class Refused(ValueError):
    """What is wrong with the bytes of a tensor; the file's name is yet to come."""


class Leaf(NamedTuple):
    """A leaf of a file: what it will be, and how it is read with a reader of tensors."""

    abstract: Any
    read: Callable[[Callable[[str, Entry], np.ndarray]], Any]


class Contents:
    """The leaves that a header speaks of, all of it checked."""

    def __init__(self, path, header: tensorfile.Header):
        self.path, self.entries = path, header.entries
        self.packed = self._json(header, PACKED)
        tree = self._json(header, TREE)
        for name, part in tree.items():
            if name not in _TREE_FIELDS or not isinstance(part, _TREE_FIELDS[name]):
                raise ValueError(
                    f"{path}: metadata {TREE!r}, field {shorten(name)}: {shorten(part)} is not "
                    f"known to this version"
                )
        self.tree = {name: tree.get(name, kind()) for name, kind in _TREE_FIELDS.items()}

    def _json(self, header, name) -> dict[str, Any]:
        return tensorfile.parse(header.metadata.get(name, "{}"), f"{self.path}: metadata {name!r}")

    def leaves(self) -> tuple[dict[str, Leaf], dict[str, list[str]]]:
        """The leaves by path, and the keys of those that have slashes in theirs."""
        found, left = {}, dict(self.entries)
        for part in ("prng", "dtypes"):
            for name in self.tree[part]:
                if name not in left:
                    raise self._wrong(name, f"field {part!r}", "there is no such tensor")
        for name, fields in self.packed.items():
            found[name] = self._packed(name, fields, left)
        others = {name: self._array(name) for name in left}
        others |= {name: self._number(name, s) for name, s in self.tree["numbers"].items()}
        others |= {name: Leaf(None, lambda _: None) for name in self._none()}
        if len(found) + len(left) + len(self.tree["numbers"]) + len(self.tree["none"]) != len(
            found := found | others
        ):
            raise ValueError(f"{self.path}: two leaves have the same path")
        for name, keys in self.tree["keys"].items():
            strings = isinstance(keys, list) and all(isinstance(key, str) for key in keys)
            if name not in found or not strings or "/".join(keys) != name:
                raise self._wrong(name, "field 'keys'", f"{shorten(keys)} do not make the path")
        return found, self.tree["keys"]

    def _none(self) -> list[str]:
        for name in self.tree["none"]:
            if not isinstance(name, str):
                raise ValueError(f"{self.path}: field 'none': {shorten(name)} is no path")
        return self.tree["none"]

    def _wrong(self, name, field, what) -> ValueError:
        return ValueError(f"{self.path}: tensor {shorten(name)}, {field}: {what}")

    def _packed(self, name: str, fields: Any, left: dict[str, Entry]) -> Leaf:
        try:
            names = packed_fields.kind_of(fields).array_names
            parts = {p: f"{name}.{p}" for p in names if left.pop(f"{name}.{p}", None) is not None}
            if keys := self.tree["prng"].keys() & parts.values():
                raise ValueError(f"field 'prng': {sorted(keys)[0]} is part of a packed weight")
            leaves = {part: self._array(tensor) for part, tensor in parts.items()}
            arrays = {part: leaf.abstract for part, leaf in leaves.items()}
            abstract = packed_fields.from_json(fields, arrays)
        except ValueError as error:
            raise ValueError(f"{self.path}: tensor {shorten(name)}, {error}") from error

        def read(tensors):
            made = {part: leaf.read(tensors) for part, leaf in leaves.items()}
            try:
                return dataclasses.replace(abstract, **made)  # checks the indices
            except ValueError as error:
                raise Refused(f"tensor {shorten(name)}, its index: {error}") from error

        return Leaf(abstract, read)

    def _array(self, name: str) -> Leaf:
        entry = self.entries[name]
        if (stored := self.tree["dtypes"].get(name)) is not None:
            return self._bytes(name, entry, stored)
        if (impl := self.tree["prng"].get(name)) is not None:
            return self._key(name, entry, impl)
        abstract = _Abstract(entry.shape, entry.dtype)
        return Leaf(abstract, lambda tensors: on_device(tensors(name, entry)))

    def _bytes(self, name: str, entry: Entry, stored: Any) -> Leaf:
        dtype = _AS_BYTES.get(stored) if isinstance(stored, str) else None
        if dtype is None:
            known = ", ".join(_AS_BYTES)
            raise self._wrong(name, "field 'dtypes'", f"{shorten(stored)} is none of {known}")
        if entry.dtype != np.uint8 or entry.shape[-1:] != (dtype.itemsize,):
            raise self._wrong(
                name,
                "field 'shape'",
                f"{entry.dtype.name} of shape {entry.shape} are not the bytes of {stored}: uint8 "
                f"with a last axis of {dtype.itemsize}",
            )

        def read(tensors):
            data = tensors(name, entry)
            array = data.view(dtype).reshape(entry.shape[:-1])
            if stored in _FOUR_BITS:
                # The upper half of a byte is no part of the number: the sign's, or nothing.
                whole, data = array.astype(np.int8).view(np.uint8), data.reshape(array.shape)
                if not ((data == whole) | (data == whole & 0xF)).all():
                    what = f"a byte of it is out of {stored}'s range"
                    raise Refused(f"tensor {shorten(name)}: {what}")
            return on_device(array)

        return Leaf(_Abstract(entry.shape[:-1], dtype), read)

    def _key(self, name: str, entry: Entry, impl: Any) -> Leaf:
        def key(data):
            return jax.random.wrap_key_data(data, impl=impl)

        try:
            data = jax.ShapeDtypeStruct(entry.shape, entry.dtype)
            abstract = jax.eval_shape(key, data)
        except Exception as error:  # JAX has many ways to say so
            what = f"{entry.dtype.name} of shape {entry.shape} are no keys of kind {shorten(impl)}"
            raise self._wrong(name, "field 'prng'", what) from error
        return Leaf(abstract, lambda tensors: key(jnp.asarray(tensors(name, entry))))

    def _number(self, name: str, stored: Any) -> Leaf:
        try:
            kind, text = stored
            if not isinstance(text, str):
                raise TypeError(text)
            value = {"True": True, "False": False}[text] if kind == "bool" else _NUMBERS[kind](text)
        except (TypeError, ValueError, KeyError) as error:
            known = f"{shorten(stored)} is no {' or '.join(_NUMBERS)}"
            raise self._wrong(name, "field 'numbers'", known) from error
        return Leaf(value, lambda _: value)


class _Abstract(NamedTuple):
    """A shape and a dtype; `jax.ShapeDtypeStruct` would make 64 bits 32."""

    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def ndim(self) -> int:
        return len(self.shape)
