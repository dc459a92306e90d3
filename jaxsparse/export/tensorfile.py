"""The safetensors format: eight bytes of length, a JSON header, the tensors' bytes.

A header is believed only once every number in it has been checked against the size
of the file, so what is allocated is never more than what is there. Work is linear in
the header, whose size and depth are bounded.
"""

import json
import math
import os
import pathlib
import struct
from collections.abc import Mapping
from typing import Any, BinaryIO, NamedTuple

import jax
import ml_dtypes
import numpy as np

from jaxsparse.files import replacing
from jaxsparse.text import shorten, wholes

MAX_HEADER = 100_000_000  # bytes, the format's own limit
METADATA = "__metadata__"
# Those that every reader of the format knows, and then those that newer ones know.
WRITTEN = {
    "BOOL": np.dtype(bool),
    "U8": np.dtype("<u1"),
    "I8": np.dtype("<i1"),
    "U16": np.dtype("<u2"),
    "I16": np.dtype("<i2"),
    "U32": np.dtype("<u4"),
    "I32": np.dtype("<i4"),
    "U64": np.dtype("<u8"),
    "I64": np.dtype("<i8"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F32": np.dtype("<f4"),
    "F64": np.dtype("<f8"),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
}
READ = WRITTEN | {
    "C64": np.dtype("<c8"),
    "F8_E4M3FNUZ": np.dtype(ml_dtypes.float8_e4m3fnuz),
    "F8_E5M2FNUZ": np.dtype(ml_dtypes.float8_e5m2fnuz),
    "F8_E8M0": np.dtype(ml_dtypes.float8_e8m0fnu),
}
_NAMES = {dtype: name for name, dtype in WRITTEN.items()}


class Entry(NamedTuple):
    """A tensor of a file: what it is, and which bytes of the file."""

    dtype: np.dtype
    shape: tuple[int, ...]
    begin: int
    end: int


class Header(NamedTuple):
    """What a file says of itself."""

    metadata: dict[str, str]
    entries: dict[str, Entry]


def writes(dtype: np.dtype) -> bool:
    """Whether tensors of this dtype can be written."""
    return dtype in _NAMES


def write(
    path: str | pathlib.Path,
    tensors: Mapping[str, jax.Array | np.ndarray],
    metadata: Mapping[str, str],
) -> None:
    """Writes tensors of dtypes that it `writes`, whole or not at all."""
    # The widest come first, so that every tensor is aligned to its own items.
    order = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))
    header: dict[str, Any] = {METADATA: dict(metadata)}
    end = 0
    for name in order:
        begin, end = end, end + tensors[name].nbytes
        dtype = _NAMES[np.dtype(tensors[name].dtype)]
        shape = list(tensors[name].shape)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > MAX_HEADER:
        raise ValueError(f"{path}: a header of {len(text)} bytes; {MAX_HEADER} is the limit")
    with replacing(path) as file:
        file.write(struct.pack("<Q", len(text)))
        file.write(text)
        for name in order:
            file.write(np.ascontiguousarray(tensors[name]).reshape(-1).view(np.uint8).data)


def read_header(path: str | pathlib.Path, file: BinaryIO) -> Header:
    """Reads and checks what comes before the tensors.

    Raises:
      ValueError: not a whole safetensors file; names it, and the tensor and the field.
    """
    size = os.fstat(file.fileno()).st_size
    start = file.read(8)
    length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
    if length < 2 or length > size - 8:
        raise ValueError(
            f"{path}: no safetensors file, or a truncated one: {size} bytes, the header "
            f"{f'would take {length}' if len(start) == 8 else 'begins with 8'}"
        )
    if length > MAX_HEADER:
        raise ValueError(f"{path}: a header of {length} bytes; {MAX_HEADER} is the limit")
    header = parse(file.read(length), f"{path}: no safetensors file: its header")
    metadata = header.pop(METADATA, {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise ValueError(f"{path}: field {METADATA!r} must hold strings by name")
    begin = 8 + length
    entries = {}
    for name, fields in header.items():
        try:
            entries[name] = _entry(fields, begin, size)
        except ValueError as error:
            raise ValueError(f"{path}: tensor {shorten(name)}, {error}") from error
    at = begin
    for name, entry in sorted(entries.items(), key=lambda item: item[1][2:]):
        if entry.begin != at:
            raise ValueError(
                f"{path}: tensor {shorten(name)}, field 'data_offsets': begins at byte "
                f"{entry.begin - begin}, the one before ends at {at - begin}"
            )
        at = entry.end
    if at != size:
        raise ValueError(f"{path}: {size - at} bytes after the last tensor belong to none")
    return Header(metadata, entries)


def read(path: str | pathlib.Path, file: BinaryIO, name: str, entry: Entry) -> np.ndarray:
    """Reads one tensor."""
    file.seek(entry.begin)
    data = np.fromfile(file, np.uint8, entry.end - entry.begin)
    if data.size != entry.end - entry.begin:
        raise ValueError(f"{path}: tensor {shorten(name)}: the file ends within it")
    if entry.dtype == bool and data.size and data.max() > 1:
        raise ValueError(f"{path}: tensor {shorten(name)}: a BOOL byte is {data.max()}, not 0 or 1")
    return data.view(entry.dtype).reshape(entry.shape)


def parse(text: bytes | str, what: str) -> dict[str, Any]:
    """A JSON object, of which no key comes twice; ValueErrors begin with `what`."""
    try:
        value = json.loads(text, object_pairs_hook=_once)
    except RecursionError:
        raise ValueError(f"{what} is nested too deeply") from None
    except ValueError as error:  # also bytes that are no text
        raise ValueError(f"{what} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{what} is {shorten(value)}, not an object")
    return value


def _once(pairs):
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key comes twice")
    return found


def _entry(fields: Any, begin: int, size: int) -> Entry:
    if not isinstance(fields, dict) or set(fields) != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"needs the fields dtype, shape and data_offsets, has {shorten(fields)}")
    name = fields["dtype"]
    dtype = READ.get(name) if isinstance(name, str) else None
    if dtype is None:
        raise ValueError(f"field 'dtype': {shorten(name)} is none of {', '.join(READ)}")
    shape = wholes("shape", fields["shape"], 0, 2**48)
    offsets = wholes("data_offsets", fields["data_offsets"], 0, size - begin)
    # A shape with a zero in it has no bytes, whatever else it claims.
    if math.prod(max(1, axis) for axis in shape) >= 2**48:
        raise ValueError(f"field 'shape': {shorten(list(shape))} is more than any file holds")
    needed = math.prod(shape) * dtype.itemsize
    if len(offsets) != 2 or offsets[1] - offsets[0] != needed:
        raise ValueError(
            f"field 'data_offsets': {shorten(list(offsets))} must be two, {needed} bytes apart, "
            f"for {name} of shape {shorten(list(shape))}"
        )
    return Entry(dtype, shape, begin + offsets[0], begin + offsets[1])
