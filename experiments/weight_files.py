"""What PyTorch writes, read without it: its axes of weights, and its older files."""

import collections
import io
import pathlib
import pickle
import struct
from typing import Any, ClassVar

import numpy as np


def from_torch(weight: Any) -> Any:
    """A weight (out, in) or (out, in, h, w) as a kernel (in, out) or (h, w, in, out)."""
    return weight.transpose((2, 3, 1, 0) if weight.ndim == 4 else (1, 0))


def to_torch(kernel: Any) -> Any:
    """A kernel as PyTorch has it: undoes `from_torch`."""
    return kernel.transpose((3, 2, 0, 1) if kernel.ndim == 4 else (1, 0))


def read_torch(file: pathlib.Path) -> dict[str, np.ndarray]:
    """Tensors of a file that ``torch.save`` wrote before version 1.6.

    Five pickles (magic number, version, sizes, the state with references to storages,
    their keys), then every storage as its length and its bytes.

    Raises:
      pickle.UnpicklingError: on anything in it that is not part of a state of tensors.
    """
    stream = io.BytesIO(file.read_bytes())
    _, _, _, state, keys = (_Unpickler(stream).load() for _ in range(5))
    dtypes = {tensor[0].key: tensor[0].dtype for tensor in state.values()}
    storages = {}
    for key in keys:
        (count,) = struct.unpack("<q", stream.read(8))
        dtype = dtypes[key]
        storages[key] = np.frombuffer(stream.read(count * dtype.itemsize), dtype)
    return {
        name: np.lib.stride_tricks.as_strided(
            storages[storage.key][offset:], shape, [step * storage.dtype.itemsize for step in steps]
        )
        for name, (storage, offset, shape, steps) in state.items()
    }


_Storage = collections.namedtuple("_Storage", "dtype key")


class _Unpickler(pickle.Unpickler):
    """Knows ordered dicts and tensors, and calls nothing else: pickles are programs."""

    _KNOWN: ClassVar[dict[tuple[str, str], Any]] = {
        ("collections", "OrderedDict"): collections.OrderedDict,
        ("torch._utils", "_rebuild_tensor_v2"): lambda *tensor: tensor[:4],
        ("torch", "FloatStorage"): np.dtype("<f4"),
        ("torch", "LongStorage"): np.dtype("<i8"),
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._KNOWN:
            raise pickle.UnpicklingError(f"{module}.{name} is no part of a state of tensors")
        return self._KNOWN[module, name]

    def persistent_load(self, pid: Any) -> _Storage:
        return _Storage(pid[1], pid[2])
