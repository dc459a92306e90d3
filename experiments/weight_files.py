"""Readers of the files that pretrained weights come in, with no library of their writers."""

import collections
import io
import json
import math
import pathlib
import pickle
import struct
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np


def from_torch(tensors: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    """Slash paths, and kernels with the output axis last."""
    found = {}
    for name, tensor in tensors.items():
        path = name.replace(".", "/")
        embeds = "embeddings" in path
        if tensor.ndim > 1 and path.endswith("/weight") and not embeds:
            axes = (2, 3, 1, 0) if tensor.ndim == 4 else (1, 0)
            tensor, path = tensor.transpose(axes), path.removesuffix("weight") + "kernel"
        if tensor.dtype == np.float32:
            found[path] = jnp.asarray(tensor)
    return found


def read_safetensors(file: pathlib.Path) -> dict[str, np.ndarray]:
    """Float32 tensors of a safetensors file: a length, a JSON header, the bytes."""
    data = file.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    return {
        name: np.frombuffer(
            data, np.float32, math.prod(entry["shape"]), 8 + length + entry["data_offsets"][0]
        ).reshape(entry["shape"])
        for name, entry in header.items()
        if name != "__metadata__" and entry["dtype"] == "F32"
    }


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
