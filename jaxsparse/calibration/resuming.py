"""A folder that a walk goes on from: what is pruned so far, and of which run it is."""

import hashlib
import json
import pathlib
import re
import types
import zipfile
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np

from jaxsparse.calibration.pieces import Unit
from jaxsparse.files import naming, replacing
from jaxsparse.trees import leaves_by_path

FORMAT = 1
_NAME = "oneshot.json"
_ADDRESS = re.compile(r" at 0x[0-9a-f]+|0x[0-9a-f]{6,}")


class Folder:
    """What a run has pruned, one file a unit.

    Args:
      folder: where; made if it is not there.
      run: fingerprints of all that the result follows from, by what they are of.

    Raises:
      ValueError: it holds another run, or what is no run; names what differs.
    """

    def __init__(self, folder: str | pathlib.Path, run: Mapping[str, str]):
        self._folder = pathlib.Path(folder)
        with naming(folder):
            self._folder.mkdir(parents=True, exist_ok=True)
        head = {"format": FORMAT} | dict(run)
        path = self._folder / _NAME
        try:
            held = json.loads(path.read_bytes())
        except FileNotFoundError:
            if any(self._folder.glob("*.npz")):
                raise ValueError(
                    f"prune_oneshot: {folder} has arrays, but no {_NAME}: an empty folder would "
                    "work"
                ) from None
            with replacing(path) as file:
                file.write(json.dumps(head, indent=1).encode())
            return
        except ValueError as error:
            raise ValueError(f"prune_oneshot: {path} cannot be read: {error}") from error
        if held != head:
            held = held if isinstance(held, dict) else {}
            other = [name for name, value in head.items() if held.get(name) != value]
            raise ValueError(
                f"prune_oneshot: {folder} holds another run, with another "
                f"{' and another '.join(other)}; an empty folder would work"
            )

    def load(self, units: Iterable[Unit]) -> dict[Unit, tuple[np.ndarray, np.ndarray | None]]:
        """By unit its mask, and its new weights, None where those that are kept stayed."""
        found = {}
        for unit in units:
            path = self._path(unit)
            if not path.exists():
                continue
            try:
                with np.load(path) as file:
                    shape = tuple(file["shape"])
                    mask = np.unpackbits(file["mask"], count=int(np.prod(shape)))
                    weights = None
                    if "weights" in file:
                        dtype = jax.numpy.dtype(str(file["dtype"]))
                        weights = file["weights"].view(dtype).reshape(shape)
            except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
                raise ValueError(
                    f"prune_oneshot: {path} of {unit.path!r} cannot be read ({error}); without "
                    "this file the kernel is pruned again"
                ) from error
            found[unit] = mask.reshape(shape).astype(bool), weights
        return found

    def save(self, unit: Unit, mask: Any, weights: Any | None) -> None:
        """Keeps what a unit became, whole or not at all."""
        mask = np.asarray(mask)
        arrays: dict[str, Any] = {"shape": mask.shape, "mask": np.packbits(mask)}
        if weights is not None:
            weights = np.ascontiguousarray(weights)
            arrays |= {"weights": weights.reshape(-1).view(np.uint8), "dtype": weights.dtype.name}
        with replacing(self._path(unit)) as file:
            np.savez(file, allow_pickle=False, **arrays)

    def _path(self, unit: Unit) -> pathlib.Path:
        name = hashlib.sha256(repr((unit.path, unit.index)).encode()).hexdigest()[:24]
        return self._folder / f"{name}.npz"


def fingerprint(value: Any) -> str:
    """The same for the same numbers, text, rules and functions, in any process.

    Of a function count its code and what it closes over, of an array every bit.

    >>> fingerprint(lambda x: x + 1) == fingerprint(lambda x: x + 2)
    False
    """
    digest = hashlib.sha256()
    _feed(digest, value, set())
    return digest.hexdigest()


def _feed(digest, value: Any, seen: set[int]) -> None:
    def say(*words):
        digest.update(repr(words).encode())

    if isinstance(value, jax.Array) and jax.numpy.issubdtype(value.dtype, jax.dtypes.prng_key):
        value = jax.random.key_data(value)
    if isinstance(value, np.ndarray | np.generic | jax.Array):
        array = np.ascontiguousarray(value)
        say(array.shape, array.dtype.name)
        digest.update(array.reshape(-1).view(np.uint8) if array.size else b"")
    elif isinstance(value, types.FunctionType):
        say("function", value.__module__, value.__qualname__)
        if id(value) in seen:
            return
        seen.add(id(value))
        _feed(digest, value.__code__, seen)
        _feed(digest, [value.__defaults__, value.__kwdefaults__], seen)
        for cell in value.__closure__ or ():
            _feed(digest, cell.cell_contents, seen)
    elif isinstance(value, types.CodeType):
        say("code", value.co_code.hex(), value.co_names)
        for constant in value.co_consts:
            _feed(digest, constant, seen)
    elif isinstance(value, Mapping):
        for key in value:
            say(key)
            _feed(digest, value[key], seen)
    elif isinstance(value, list | tuple):
        say(type(value).__name__, len(value))
        for part in value:
            _feed(digest, part, seen)
    elif isinstance(value, frozenset | set):
        say(sorted(map(repr, value)))
    elif _is_leaf(value):
        say(type(value).__name__, _ADDRESS.sub("", str(value)))
    else:
        for path, leaf in leaves_by_path(value).items():
            say(path)
            _feed(digest, leaf, seen)


def _is_leaf(value: Any) -> bool:
    leaves = jax.tree.leaves(value)
    return (len(leaves) == 1 and leaves[0] is value) or value is None
