"""Packed weights in safetensors files.

A packed weight at the path `up/kernel` becomes the tensors `up/kernel.values`,
`up/kernel.indptr` and so on; what is not an array (the kind, the block, the
shape) is JSON in the file's metadata. With orbax no code of ours is needed:
packed weights are pytrees, and `checkpoint.Checkpointer` takes them as they are.

A file holds what the weights are, not what multiplies by them: it loads on a
machine without native kernels and gives the same numbers there.
"""

import dataclasses
import json
import pathlib
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxsparse.arrays import CSC, Bitmap, BlockSparse, NMSparse
from jaxsparse.packed import as_tuples, is_packed
from jaxsparse.trees import leaves_by_path
from jaxsparse.views import View

Tree = Any
_KINDS = {kind.__name__: kind for kind in (Bitmap, BlockSparse, CSC, NMSparse)}
_METADATA = "jaxsparse"


def save_safetensors(path: str | pathlib.Path, params: Tree) -> None:
    """Writes a tree of arrays and packed weights, all of them by slash path.

    Args:
      path: the file.
      params: nested dicts and lists of arrays and packed weights.

    Raises:
      ImportError: safetensors is not installed.
      ValueError: two tensors would have the same name.

    Example:
      >>> import os, tempfile, jax.numpy as jnp, jaxsparse as js
      >>> params = {"kernel": js.pack(jnp.eye(8), js.Block(4, 4))}
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     file = os.path.join(folder, "model.safetensors")
      ...     js.save_safetensors(file, params)
      ...     js.load_safetensors(file)["kernel"]
      BlockSparse[4x4, 50.0%](shape=(8, 8), float32)
    """
    from safetensors.numpy import save_file

    tensors, packed = {}, {}

    def add(name, array):
        if name in tensors:
            raise ValueError(f"two tensors would be called {name!r}")
        tensors[name] = np.ascontiguousarray(array)

    for name, leaf in leaves_by_path(params, is_packed).items():
        if not is_packed(leaf):
            add(name, leaf)
            continue
        fields = {f.name: getattr(leaf, f.name) for f in dataclasses.fields(leaf)}
        for part in leaf.array_names:
            if (array := fields.pop(part)) is not None:
                add(f"{name}.{part}", array)
        fields["view"] = dataclasses.asdict(fields["view"])
        packed[name] = {"kind": type(leaf).__name__, **fields}
    save_file(tensors, str(path), metadata={_METADATA: json.dumps(packed)})


def load_safetensors(path: str | pathlib.Path) -> dict[str, Any]:
    """Reads what `save_safetensors` wrote.

    Args:
      path: the file; one without packed weights will do.

    Returns:
      Nested dicts; lists come back as dicts with the keys "0", "1" and so on.

    Raises:
      ImportError: safetensors is not installed.
      ValueError: the indices in the file are not valid, or a kind of packed
        weight is unknown.
    """
    from safetensors import safe_open

    with safe_open(str(path), framework="numpy") as file:
        packed = json.loads((file.metadata() or {}).get(_METADATA, "{}"))
        arrays = {name: jnp.asarray(file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118
    flat = {}
    for name, fields in packed.items():
        fields = as_tuples(fields)
        kind = _KINDS.get(fields.pop("kind"))
        if kind is None:
            raise ValueError(f"{name!r} in {path} is of a kind that this version does not know")
        fields["view"] = View(**fields["view"])
        parts = {p: arrays.pop(f"{name}.{p}", None) for p in kind.array_names}
        flat[name] = kind(**parts, **fields)
    tree = {}
    for name, leaf in {**arrays, **flat}.items():
        *parents, last = name.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = leaf
    return tree
