"""A folder that a walk goes on from: what is pruned so far, and of which run it is."""

import functools
import hashlib
import json
import pathlib
import re
import types
import zipfile
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from jaxsparse import jaxprs
from jaxsparse.calibration.pieces import Unit
from jaxsparse.files import replacing

FORMAT = 1
_NAME = "oneshot.json"
_ADDRESS = re.compile(r" at 0x[0-9a-f]+|0x[0-9a-f]{6,}")
_UNREADABLE = (OSError, EOFError, ValueError, KeyError, RuntimeError, zipfile.BadZipFile)
_PLAIN = (int, float, complex, str, np.ndarray, np.generic, jax.Array)


class Folder:
    """What a run has pruned, one file a unit.

    Args:
      folder: where; it is there, and held.
      run: fingerprints of all that the result follows from, by what they are of.

    Raises:
      ValueError: it holds another run, or what is no run; names what differs.
    """

    def __init__(self, folder: str | pathlib.Path, run: Mapping[str, str]):
        self._folder = pathlib.Path(folder)
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

    def load(
        self, units: Mapping[Unit, jax.ShapeDtypeStruct]
    ) -> dict[Unit, tuple[np.ndarray, np.ndarray | None]]:
        """By unit its mask, and its new weights, None where those that are kept stayed.

        Args:
          units: what its kernels are like.
        """
        found = {}
        for unit, like in units.items():
            path = self._path(unit)
            if not path.exists():
                continue
            try:
                with np.load(path) as file:
                    held = {name: file[name] for name in file.files}
                mine = repr(unit), str(like.dtype), like.shape
                theirs = str(held["unit"]), str(held["dtype"]), tuple(held["shape"].tolist())
                if theirs != mine:
                    raise ValueError(f"it holds {theirs}, not {mine}")
                mask = np.unpackbits(held["mask"], count=like.size).reshape(like.shape)
                new = held["weights"].view(like.dtype).reshape(like.shape) if held["new"] else None
            except _UNREADABLE as error:
                raise ValueError(
                    f"prune_oneshot: {path} of {unit.path!r} cannot be read ({error}); without "
                    "this file the kernel is pruned again"
                ) from error
            found[unit] = mask.astype(bool), new
        return found

    def save(self, unit: Unit, mask: Any, weights: Any, new: bool) -> None:
        """Keeps what a unit became, whole or not at all; weights where they are new."""
        weights, mask = np.ascontiguousarray(weights), np.asarray(mask)
        arrays: dict[str, Any] = {
            "unit": repr(unit),
            "shape": np.array(mask.shape, np.int64),
            "dtype": weights.dtype.name,
            "mask": np.packbits(mask),
            "new": new,
            "weights": weights.reshape(-1).view(np.uint8) if new else np.zeros(0, np.uint8),
        }
        with replacing(self._path(unit)) as file:
            np.savez(file, allow_pickle=False, **arrays)

    def _path(self, unit: Unit) -> pathlib.Path:
        name = hashlib.sha256(repr((unit.path, unit.index)).encode()).hexdigest()[:24]
        return self._folder / f"{name}.npz"


def fingerprint(value: Any) -> str:
    """The same for the same numbers, text, rules, functions and objects, in any process.

    Of a function count its code, what it closes over, and numbers, arrays and functions that it
    takes from its module; of an array every bit; of an object its attributes.

    >>> fingerprint(lambda x: x + 1) == fingerprint(lambda x: x + 2)
    False
    """
    digest = hashlib.sha256()
    _feed(digest, value, set())
    return digest.hexdigest()


def of_program(program: jaxprs.Program) -> str:
    """The fingerprint of a traced program, its constants and those of all that it calls."""
    jaxpr, consts = program
    digest = hashlib.sha256()
    seen: set[int] = set()
    _feed(digest, [str(jaxpr), list(consts)], seen)
    for equation in jaxprs.equations(jaxpr):
        # Printed they are names: arrays of what is called, and what runs on the host.
        _feed(digest, [list(consts) for _, consts in jaxprs.programs(equation)], seen)
        _feed(digest, [v for name, v in equation.params.items() if name == "callback"], seen)
    return digest.hexdigest()


def _feed(digest, value: Any, seen: set[int]) -> None:
    def say(*words):
        digest.update(repr(words).encode())

    def again() -> bool:
        known = id(value) in seen
        seen.add(id(value))
        return known

    if isinstance(value, jax.Array) and jax.numpy.issubdtype(value.dtype, jax.dtypes.prng_key):
        value = jax.random.key_data(value)
    if isinstance(value, np.ndarray | np.generic | jax.Array):
        array = np.ascontiguousarray(value)
        say(array.shape, array.dtype.name)
        digest.update(array.reshape(-1).view(np.uint8) if array.size else b"")
    elif isinstance(value, types.FunctionType):
        say("function", value.__module__, value.__qualname__)
        if again():
            return
        _feed(digest, value.__code__, seen)
        _feed(digest, [value.__defaults__, value.__kwdefaults__], seen)
        for cell in value.__closure__ or ():
            _feed(digest, cell.cell_contents, seen)
        for name in value.__code__.co_names:
            found = value.__globals__.get(name)
            theirs = getattr(found, "__module__", None) == value.__module__
            if isinstance(found, _PLAIN) or (isinstance(found, types.FunctionType) and theirs):
                say(name)
                _feed(digest, found, seen)
    elif isinstance(value, types.CodeType):
        say("code", value.co_code.hex(), value.co_names)
        for constant in value.co_consts:
            _feed(digest, constant, seen)
    elif isinstance(value, functools.partial):
        _feed(digest, ["partial", value.func, value.args, value.keywords], seen)
    elif isinstance(value, types.MethodType):
        _feed(digest, ["method", value.__func__, value.__self__], seen)
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
    elif isinstance(value, type | types.ModuleType):
        say(str(value))
    elif hasattr(value, "__wrapped__"):  # jit and its like
        say(type(value).__name__)
        _feed(digest, value.__wrapped__, seen)
    elif hasattr(value, "callback_func"):  # what JAX calls on the host
        _feed(digest, value.callback_func, seen)
    else:
        say(type(value).__name__, _ADDRESS.sub("", str(value)))
        # A text of it leaves out what is long, or says no more than where it is.
        if hasattr(value, "__dict__") and not again():
            _feed(digest, vars(value), seen)
