"""The file of a program: what `jax.export` reads, what its weights are, and a checksum.

`jax.export` reads past what follows a program. There JSON says what an array's shape does
not: how weights are packed, and which numbers and keys became constants. Weights of another
structure would be multiplied by as if they were the program's.
"""

import errno
import hashlib
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from jax import export

from jaxsparse.export import tensorfile
from jaxsparse.export.treefile import Plan
from jaxsparse.text import shorten

PROGRAM = "jaxsparse.program"  # of which program a file of weights is, in its metadata
_MARK = b"jaxsparse.stablehlo.1"
_DIGEST = hashlib.sha256().digest_size
_LENGTH = 8  # bytes that say how long the JSON is


class Contents(NamedTuple):
    """What a file holds.

    Attributes:
      exported: the program.
      structure: of the weights that it takes, as `structure` gives it.
      digest: what a file of weights names it by.
    """

    exported: export.Exported
    structure: dict[str, Any]
    digest: str


def join(program: bytes, structure: Mapping[str, Any]) -> bytes:
    """The bytes of a file."""
    note = json.dumps(structure).encode()
    data = program + note + len(note).to_bytes(_LENGTH, "little") + _MARK
    return data + hashlib.sha256(data).digest()


def digest(data: bytes) -> str:
    """What a file of weights names a program's file by."""
    return data[-_DIGEST:].hex()


def read(path: pathlib.Path) -> Contents:
    """Reads what `join` made.

    Raises:
      ValueError: it is another file, or is damaged.
    """
    whole = path.read_bytes()
    data = whole[:-_DIGEST]
    intact = whole[-_DIGEST:] == hashlib.sha256(data).digest() and data.endswith(_MARK)
    try:
        if not intact:
            raise ValueError("its checksum is another")
        rest = data[: -len(_MARK)]
        end = len(rest) - _LENGTH
        begin = end - int.from_bytes(rest[end:], "little")
        structure = tensorfile.parse(rest[begin:end], str(path))
        exported = export.deserialize(bytearray(rest[:begin]))
    except Exception as error:  # of any kind, where bytes are no program
        raise ValueError(
            f"{path} is no program that export_stablehlo wrote, or is damaged; "
            "jax.export.deserialize reads programs of others"
        ) from error
    return Contents(exported, structure, digest(whole))


def structure(weights: Plan) -> dict[str, Any]:
    """What arrays of the same shapes may differ in: JSON.

    Keys are told by a digest of their data: they are no weights, and may be secrets.
    """
    constants = {name: " ".join(number) for name, number in weights.tree["numbers"].items()}
    for name, impl in weights.tree["prng"].items():
        data = hashlib.sha256(np.asarray(weights.tensors[name]).tobytes()).hexdigest()
        constants[name] = f"{impl} key of digest {data[:16]}"
    return json.loads(json.dumps({"packed": weights.packed, "constants": constants}))


def check_structure(source: str, wanted: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    """Raises ValueError unless weights are packed as a program's are, with its constants."""
    for path, fields in wanted["packed"].items():
        here = found["packed"].get(path, {})
        for name in fields.keys() | here.keys():
            if here.get(name) != fields.get(name):
                raise ValueError(
                    f"{source}: {path!r} is packed otherwise than the program's, {name} "
                    f"{shorten(here.get(name))} for {shorten(fields.get(name))}; a program "
                    "exported with these weights would work"
                )
    missing = "not there"
    for path in wanted["constants"].keys() | found["constants"].keys():
        here, there = (each["constants"].get(path, missing) for each in (found, wanted))
        if here != there:
            raise ValueError(
                f"{source}: {path!r} is {here}, and {there} in the program, a constant of it; "
                "exported as an array of numbers it would be a weight like others"
            )


def beside(path: pathlib.Path) -> pathlib.Path:
    """The file of the weights that a program takes.

    >>> beside(pathlib.Path("epoch.1")).name
    'epoch.1.safetensors'
    """
    return path.with_name(f"{path.name}.safetensors")


def check_targets(path: pathlib.Path, with_weights: bool) -> None:
    """Raises OSError where a file would take the place of what is no file of a program."""
    weights = beside(path)
    for target in (path, *([weights] if with_weights else ())):
        if target.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(target))
    if with_weights and weights.exists() and not _is_ours(weights):
        raise FileExistsError(
            errno.EEXIST,
            f"not overwritten, since export_stablehlo has not written it; another path than {path} "
            "would work",
            str(weights),
        )


def _is_ours(weights: pathlib.Path) -> bool:
    try:
        with weights.open("rb") as file:
            return PROGRAM in tensorfile.read_header(weights, file).metadata
    except ValueError:
        return False
