"""Values of a program that are alive at a cut, of all batches: in memory, or in files."""

import pathlib
import tempfile
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

_SMALL = 2**16  # bytes that are not worth a file


class Live:
    """Arrays by batch and variable.

    Args:
      folder: where large ones are kept, as files that are mapped into memory; None keeps all in
        memory. What a killed process left there is of no use and may be deleted.
    """

    def __init__(self, folder: str | pathlib.Path | None = None):
        self._held: dict[tuple[int, int], Any] = {}
        self._files: dict[tuple[int, int], pathlib.Path] = {}
        self._folder: tempfile.TemporaryDirectory | None = None
        if folder is not None:
            pathlib.Path(folder).mkdir(parents=True, exist_ok=True)
            self._folder = tempfile.TemporaryDirectory(prefix="values-", dir=folder)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self._held.clear()
        if self._folder is not None:
            self._folder.cleanup()

    def put(self, batch: int, ref: int, array: Any) -> None:
        """Keeps an array."""
        keys = isinstance(array, jax.Array) and jnp.issubdtype(array.dtype, jax.dtypes.extended)
        if self._folder is not None and not keys and array.nbytes >= _SMALL:
            path = pathlib.Path(self._folder.name, f"{batch}-{ref}")
            written = np.memmap(path, array.dtype, "w+", shape=array.shape)
            written[...] = array
            written.flush()
            self._files[batch, ref] = path
            # Mapped anew where it is read: pages of this one would count as memory in use.
            array = jax.ShapeDtypeStruct(array.shape, array.dtype)
            del written
        self._held[batch, ref] = array

    def get(self, batch: int, ref: int) -> Any:
        """An array that is kept."""
        array = self._held[batch, ref]
        if (batch, ref) in self._files:
            return np.memmap(self._files[batch, ref], array.dtype, "r", shape=array.shape)
        return array

    def drop(self, batch: int, ref: int) -> None:
        """Lets go of an array."""
        del self._held[batch, ref]
        if (batch, ref) in self._files:
            self._files.pop((batch, ref)).unlink()
