"""What a GGUF file says of itself: metadata, and where which tensor lies.

The package gguf believes a file: a length of 2^60 or an offset behind the end gives an error of
NumPy's, or views of something else. Here every field is held against the size of the file before
anything is made of it, and an error names file and field.
"""

import math
import mmap
import pathlib
import struct
import sys
from typing import Any, NamedTuple

from jaxsparse.text import shorten

MAGIC = b"GGUF"
# 2 and 3 differ in what they say of byte orders; in 1 lengths had 32 bits.
VERSIONS = (2, 3)
_STRING, _ARRAY, _BOOL = 8, 9, 7
# By number of the type: codes of struct. Those of texts and arrays are none.
_CODES = ("B", "b", "H", "h", "I", "i", "f", "?", None, None, "Q", "q", "d")
_SCALARS = {number: code for number, code in enumerate(_CODES) if code}
_ALIGNMENT = "general.alignment"
_MOST_AXES = 4


class Entry(NamedTuple):
    """One tensor.

    Attributes:
      kind: number of its storage, as `gguf.GGMLQuantizationType` has it.
      shape: of numbers, PyTorch's order: the last axis is contiguous.
      begin, end: bytes of the file.
    """

    kind: int
    shape: tuple[int, ...]
    begin: int
    end: int


class Header(NamedTuple):
    """What stands before the numbers.

    Attributes:
      metadata: by key; lists for arrays.
      tensors: by name.
    """

    metadata: dict[str, Any]
    tensors: dict[str, Entry]


def read_header(file: str | pathlib.Path) -> Header:
    """Reads and checks everything but the numbers.

    Raises:
      FileNotFoundError: no such file.
      ValueError: no GGUF file, one of another version or byte order, one that ends too early, a
        key or tensor that comes twice, a type, a shape or a place of a tensor that cannot be;
        names the file and the key or tensor. Also where the package gguf is not installed.
    """
    file = pathlib.Path(file)
    if not file.is_file():
        raise FileNotFoundError(f"{file} is not there; the path of a .gguf file would work")
    with file.open("rb") as opened:
        if not opened.read(1):
            raise ValueError(f"{file} is empty, and no GGUF file")
        with mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _parse(_Reader(file, data))


class _Reader:
    """Goes through the bytes of a file; `what` is what it is at, for errors."""

    def __init__(self, file: pathlib.Path, data: mmap.mmap):
        self.file, self.data, self.size = file, data, len(data)
        self.at, self.what = 0, "the first bytes"

    def error(self, text: str) -> ValueError:
        return ValueError(f"{self.file}: {self.what}: {text}")

    def need(self, count: int) -> None:
        if count > self.size - self.at:
            raise self.error(
                f"{count} bytes are to follow byte {self.at}, and the file ends at {self.size}: "
                "it is truncated or damaged"
            )

    def numbers(self, code: str, count: int = 1) -> tuple[Any, ...]:
        width = struct.calcsize(f"<{code}")
        self.need(count * width)
        found = struct.unpack_from(f"<{count}{code}", self.data, self.at)
        self.at += count * width
        return found

    def number(self, code: str) -> Any:
        return self.numbers(code)[0]

    def string(self) -> str:
        length = self.number("Q")
        self.need(length)
        self.at += length
        try:
            return self.data[self.at - length : self.at].decode()
        except UnicodeDecodeError as error:
            raise self.error(f"the text that ends at byte {self.at} is no UTF-8: {error}") from None

    def value(self) -> Any:
        kind = self.number("I")
        if kind != _ARRAY:
            return self._of(kind, 1)[0]
        kind, count = self.number("I"), self.number("Q")
        return self._of(kind, count)

    def _of(self, kind: int, count: int) -> list[Any]:
        if kind == _STRING:
            self.need(8 * count)  # each has its length, at least
            return [self.string() for _ in range(count)]
        if kind not in _SCALARS:
            raise self.error(f"{kind} is no type of value that can be read here")
        found = self.numbers("B" if kind == _BOOL else _SCALARS[kind], count)
        if kind == _BOOL and not set(found) <= {0, 1}:
            raise self.error(f"a truth value is {max(found)}, not 0 or 1")
        return [bool(x) for x in found] if kind == _BOOL else list(found)


def _parse(reader: _Reader) -> Header:
    reader.need(4)
    if (magic := reader.data[:4]) != MAGIC:
        raise reader.error(f"{magic!r} where {MAGIC!r} would be: no GGUF file")
    reader.at = 4
    reader.what = "version"
    version = reader.number("I")
    if version not in VERSIONS:
        swapped = int.from_bytes(version.to_bytes(4, "little"), "big")
        order = ", in the byte order of other machines" if swapped in VERSIONS else ""
        raise reader.error(f"{min(version, swapped)}{order}; {VERSIONS} can be read")
    reader.what = "number of tensors and of keys"
    tensors, keys = reader.numbers("Q", 2)
    reader.need(12 * keys + 24 * tensors)
    metadata: dict[str, Any] = {}
    for number in range(keys):
        reader.what = f"key {number} of {keys}"
        key = reader.string()
        reader.what = f"key {shorten(key)}"
        if key in metadata:
            raise reader.error("it is there twice")
        metadata[key] = reader.value()
    found: dict[str, tuple[int, tuple[int, ...], int]] = {}
    for number in range(tensors):
        reader.what = f"tensor {number} of {tensors}"
        name = reader.string()
        reader.what = f"tensor {shorten(name)}"
        if name in found:
            raise reader.error("it is there twice")
        axes = reader.number("I")
        if not 1 <= axes <= _MOST_AXES:
            raise reader.error(f"it has {axes} axes; from 1 to {_MOST_AXES} can be read")
        shape = reader.numbers("Q", axes)[::-1]
        found[name] = (reader.number("I"), shape, reader.number("Q"))
    reader.what = f"key {_ALIGNMENT!r}"
    alignment = metadata.get(_ALIGNMENT, 32)
    if type(alignment) is not int or not 1 <= alignment <= 2**20 or alignment & (alignment - 1):
        raise reader.error(f"{shorten(alignment)} is no power of 2 up to {2**20}")
    begin = -(-reader.at // alignment) * alignment
    entries = {}
    for name, (kind, shape, offset) in found.items():
        reader.what, reader.at = f"tensor {shorten(name)}", begin + offset
        if offset % alignment:
            raise reader.error(f"offset {offset} is no multiple of the alignment, {alignment}")
        size = _bytes_of(reader, kind, shape)
        reader.need(size)
        entries[name] = Entry(kind, shape, begin + offset, begin + offset + size)
    _check_apart(reader, entries)
    return Header(metadata, entries)


def _bytes_of(reader: _Reader, kind: int, shape: tuple[int, ...]) -> int:
    gguf = package()
    if kind not in gguf.GGML_QUANT_SIZES:
        raise reader.error(f"{kind} is no storage that the package gguf knows")
    count, width = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(kind)]
    if 0 in shape or shape[-1] % count:
        raise reader.error(
            f"shape {shape}: no axis may be 0, and rows of its storage, "
            f"{gguf.GGMLQuantizationType(kind).name}, are multiples of {count}"
        )
    return math.prod(shape) // count * width


def _check_apart(reader: _Reader, entries: dict[str, Entry]) -> None:
    """Tensors that share bytes make a small file a large model."""
    before, end = "", 0
    for name, entry in sorted(entries.items(), key=lambda item: item[1].begin):
        if entry.begin < end:
            reader.what = f"tensor {shorten(name)}"
            raise reader.error(f"it begins at byte {entry.begin}, within {shorten(before)}")
        before, end = name, entry.end


def package() -> Any:
    """The package gguf.

    Raises:
      ValueError: it is not installed.
    """
    try:
        import gguf  # late: `make demo` does not install it
    except ImportError:
        raise ValueError(
            f"GGUF files are read with gguf: {sys.executable} -m pip install gguf"
        ) from None
    return gguf
