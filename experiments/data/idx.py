"""Arrays in IDX files, as MNIST and its relatives come: plain or gzipped, never trusted."""

import gzip
import math
import pathlib
import struct
import zlib

import numpy as np

_UNSIGNED_BYTES = 0x08
# Deflate makes of a byte no more than these.
_MOST = 1032


def read(file: pathlib.Path, ndim: int) -> np.ndarray:
    """The unsigned bytes of an IDX file.

    Two zero bytes, 0x08 for unsigned bytes, the number of axes; the size of every axis as four
    bytes, the highest first; the entries, the last axis running fastest.

    Args:
      file: plain, or gzipped if its name ends in .gz.
      ndim: axes that the array is to have.

    Raises:
      ValueError: another type or number of axes, no entries, or more or fewer bytes than the
        sizes say: a torn file. Nothing larger than the file can hold is allocated.
      OSError: the file cannot be read.
    """
    zipped = file.suffix == ".gz"
    room = file.stat().st_size * (_MOST if zipped else 1)
    try:
        with gzip.open(file) if zipped else file.open("rb") as stream:
            head = stream.read(4 + 4 * ndim)
            if len(head) < 4 + 4 * ndim or head[:3] != bytes([0, 0, _UNSIGNED_BYTES]):
                raise ValueError(
                    f"{file} begins with {head[:4].hex(' ') or 'nothing'}; an IDX file of unsigned "
                    f"bytes with {ndim} axes begins with 00 00 08 {ndim:02x}"
                )
            if head[3] != ndim:
                raise ValueError(f"{file} has {head[3]} axes; one of {ndim} would work")
            shape = struct.unpack(f">{ndim}I", head[4:])
            size = math.prod(shape)
            if not size:
                raise ValueError(f"{file} says the shape {shape}: it has no entries")
            # A byte more than there should be, to see that there is none.
            values = stream.read(size + 1) if size <= room else b""
    except (zlib.error, EOFError, gzip.BadGzipFile) as error:
        raise ValueError(f"{file} is no whole gzip file ({error}); fetch it again") from error
    if len(values) != size:
        found = "more" if len(values) > size else "fewer"
        raise ValueError(
            f"{file} says the shape {shape}, {size:,} bytes, and holds {found}; fetch it again"
        )
    return np.frombuffer(values, np.uint8).reshape(shape)


def write(array: np.ndarray) -> bytes:
    """The bytes of an IDX file of an array of unsigned bytes.

    >>> write(np.array([7, 9], np.uint8)).hex(" ")
    '00 00 08 01 00 00 00 02 07 09'
    """
    head = bytes([0, 0, _UNSIGNED_BYTES, array.ndim])
    return head + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()
