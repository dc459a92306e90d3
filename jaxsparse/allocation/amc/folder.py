"""A folder that a search goes on from: all of its state, whole or not there."""

import json
import pathlib
import zipfile
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from jaxsparse.allocation.jsons import parsed
from jaxsparse.calibration.resuming import fingerprint
from jaxsparse.files import replacing
from jaxsparse.text import shorten
from jaxsparse.trees import leaves_by_path

FORMAT = 1
_NAME = "amc.npz"
_UNREADABLE = (OSError, EOFError, ValueError, TypeError, KeyError, zipfile.BadZipFile)


class Folder:
    """Where a search is kept.

    Args:
      folder: that is held; None keeps nothing.
      run: all that the search follows from, by what it is.
    """

    def __init__(self, folder: str | pathlib.Path | None, run: Mapping[str, Any]):
        self._path = None if folder is None else pathlib.Path(folder) / _NAME
        self._run = {"format": str(FORMAT)}
        if folder is not None:
            self._run |= {name: fingerprint(value) for name, value in run.items()}

    def load(self, like: Any) -> tuple[int, Any] | None:
        """How many episodes are done, and the state after them; None if there is none.

        Args:
          like: a state whose history has room for all episodes that are asked for.

        Raises:
          ValueError: the folder holds another search, or one of more episodes, or the file is
            damaged.
        """
        if self._path is None or not self._path.exists():
            return None
        try:
            with np.load(self._path) as file:
                held = {name: file[name] for name in file.files}
            run, done = parsed(str(held.pop("run"))), int(held.pop("episodes"))
            if not isinstance(run, dict):
                raise ValueError(f"'run' is {shorten(run)}, no dictionary")
        except _UNREADABLE as error:
            raise ValueError(
                f"amc: {self._path} cannot be read ({error}); without this file the search begins "
                "anew"
            ) from error
        if run != self._run:
            other = [name for name, value in self._run.items() if run.get(name) != value]
            raise ValueError(
                f"amc: {self._path} holds another search, with another "
                f"{' and another '.join(other)}; an empty folder would work"
            )
        leaves, structure = jax.tree.flatten(like)
        found = []
        for path, leaf in leaves_by_path(like).items():
            array = held.get(path)
            grows = path.startswith("history/")
            shape = (done, *leaf.shape[1:]) if grows else leaf.shape
            if array is None or array.shape != shape or array.dtype != leaf.dtype:
                raise ValueError(f"amc: {self._path} has no {path!r} of shape {shape}")
            if grows and done > len(leaf):
                raise ValueError(
                    f"amc: {self._path} holds {done} episodes; episodes={done} or more would work"
                )
            found.append(np.concatenate([array, leaf[done:]]) if grows else array)
        assert len(found) == len(leaves)
        return done, jax.tree.unflatten(structure, map(jax.numpy.asarray, found))

    def save(self, done: int, state: Any) -> None:
        """Keeps the state after so many episodes."""
        if self._path is None:
            return
        arrays = {
            path: np.asarray(leaf)[:done] if path.startswith("history/") else np.asarray(leaf)
            for path, leaf in leaves_by_path(state).items()
        }
        arrays |= {"run": np.array(json.dumps(self._run)), "episodes": np.array(done)}
        with replacing(self._path) as file:
            np.savez(file, allow_pickle=False, **arrays)
