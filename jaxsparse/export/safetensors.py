"""Trees of arrays and packed weights in safetensors files.

A packed weight at the path `up/kernel` becomes the tensors `up/kernel.values`,
`up/kernel.indptr` and so on; its fields that are no arrays (the kind, the block, the
shape) are JSON in the file's metadata, under `jaxsparse`. What a tensor cannot say is
under `jaxsparse.tree`: Python numbers, None, the kind of a PRNG key, dtypes that the
format lacks, keys with slashes in them. With orbax no code of ours is needed: packed
weights are pytrees, and `checkpoint.Checkpointer` takes them as they are.

A file holds what the weights are, not what multiplies by them: it loads on a
machine without native kernels and gives the same numbers there.
"""

import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxsparse.export import tensorfile
from jaxsparse.export.treefile import Contents, Plan, Refused
from jaxsparse.packed.base import is_packed
from jaxsparse.text import shorten
from jaxsparse.trees import (
    becomes,
    flatten_keys,
    leaves_by_path,
    near_misses,
    replace_by_path,
)

Tree = Any
MAX_DEPTH = 256  # of what is nested by the slashes of a path


def save_safetensors(path: str | pathlib.Path, params: Tree) -> None:
    """Writes a tree of arrays and packed weights, all of them by slash path.

    Every leaf comes back from `load_safetensors`: arrays of any shape, bfloat16, fp8,
    four-bit integers and complex numbers among them, typed PRNG keys, Python's bool, int
    and float, and None. Functions, which Equinox modules have for leaves, are left
    out. The file is written beside the old one and takes its place when it is
    whole: a full disk or a kill leaves what was there.

    Args:
      path: the file.
      params: any tree: nested dicts and lists, `nnx.State`, linen's boxes, modules.

    Raises:
      TypeError: a leaf that cannot be stored, such as a string; its path is quoted.
      ValueError: two tensors would have the same name; a packed weight has no
        values, or arrays that do not fit each other. Nothing is written then.
      OSError: the file cannot be written; it is named.

    Example:
      >>> import os, tempfile, jax.numpy as jnp, jaxsparse as js
      >>> params = {"kernel": js.pack(jnp.eye(8), js.Block(4, 4))}
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     file = os.path.join(folder, "model.safetensors")
      ...     js.save_safetensors(file, params)
      ...     js.load_safetensors(file)["kernel"]
      BlockSparse[4x4, 50.0%](shape=(8, 8), float32)
    """
    file = plan(params)
    tensorfile.write(path, file.tensors, file.metadata)


def plan(params: Tree) -> Plan:
    """What a file of a tree will hold; raises what `save_safetensors` does."""
    found = Plan()
    leaves_by_path(params, is_packed)  # two leaves of one path are an error
    for keys, leaf in flatten_keys(params, lambda node: node is None or is_packed(node)):
        found.add(keys, leaf)
    return found


def load_safetensors(path: str | pathlib.Path, like: Tree = None) -> Any:
    """Reads what `save_safetensors` wrote, or any other safetensors file.

    Everything in the file is checked before an array is made, so that a file from
    elsewhere may be wrong but does no harm.

    Args:
      path: the file.
      like: a tree to put the leaves into: an `nnx.State`, boxed linen parameters, a
        Haiku or Equinox tree, of arrays or `jax.ShapeDtypeStruct`. Every leaf must be
        there with its shape and dtype, and no other; functions stay those of `like`.
        A Python number takes the scalar that `jit` makes of it, too.
        Whether a weight is packed, and how, is for the file to say.

    Returns:
      A tree like `like`; without it nested dicts, in which lists are dicts with the
      keys "0", "1" and so on. Arrays of 64 bits that JAX would truncate are NumPy's.

    Raises:
      ValueError: the file is damaged, or no safetensors file, or does not fit `like`;
        names the file, the tensor and the field.

    Example:
      >>> import os, tempfile, jax.numpy as jnp, jaxsparse as js
      >>> from flax import nnx
      >>> model = nnx.Linear(8, 8, rngs=nnx.Rngs(0))
      >>> params = nnx.state(model, nnx.Param)
      >>> packed = js.pack_params(params, {}, [js.Rule("kernel", js.Block(4, 4), 0.5)])
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     file = os.path.join(folder, "model.safetensors")
      ...     js.save_safetensors(file, packed)
      ...     loaded = js.load_safetensors(file, like=params)
      >>> type(loaded).__name__, js.is_packed(loaded["kernel"].get_value())
      ('State', True)
    """
    with open(path, "rb") as file:
        header = tensorfile.read_header(path, file)
        leaves, keys = Contents(path, header).leaves()
        if like is not None:
            _check_fit(path, {name: leaf.abstract for name, leaf in leaves.items()}, like)
        try:
            read = {
                name: leaf.read(lambda tensor, entry: tensorfile.read(path, file, tensor, entry))
                for name, leaf in leaves.items()
            }
        except Refused as error:
            raise ValueError(f"{path}: {error}") from error
    if like is None:
        return _nested(path, read, keys)
    return replace_by_path(like, {n: x for n, x in read.items() if x is not None}, is_packed)


def _check_fit(path, found: Mapping[str, Any], like: Tree) -> None:
    """Raises ValueError unless the leaves are those of `like`."""
    wanted = {p: x for p, x in leaves_by_path(like, is_packed).items() if not _is_code(x)}
    found = {p: x for p, x in found.items() if x is not None}
    for name in wanted:
        if name not in found:
            close = near_misses(name, found)
            raise ValueError(f"{path} has no {name!r}, which `like` has; {close}")
    for name in found:
        if name not in wanted:
            close = near_misses(name, wanted)
            raise ValueError(f"{path} has {name!r}, which `like` lacks; {close}")
    for name, leaf in found.items():
        here, there = _describe(leaf), _describe(wanted[name])
        if hasattr(leaf, "shape") and becomes(wanted[name], *here):
            continue
        if any(a != b for a, b in zip(here, there, strict=True) if None not in (a, b)):
            raise ValueError(f"{path}: {name!r} is {_words(here)} there, {_words(there)} in `like`")


def _is_code(leaf: Any) -> bool:
    return callable(leaf) and not hasattr(leaf, "dtype")


def _describe(leaf: Any) -> tuple[Any, ...]:
    """What must agree: the type of a number, shape and dtype of others; None is anything."""
    if not hasattr(leaf, "shape"):
        return type(leaf).__name__, None
    # A structure has no dtype yet; that of quantized values is that of their scales.
    free = is_packed(leaf) and (leaf.values is None or leaf.scales is not None)
    return tuple(leaf.shape), None if free else _native(leaf.dtype)


def _native(dtype: Any) -> Any:
    return dtype.newbyteorder("=") if isinstance(dtype, np.dtype) else dtype


def _words(description: tuple[Any, ...]) -> str:
    return " ".join(str(part) for part in description if part is not None)


def _nested(path, leaves: Mapping[str, Any], keys: Mapping[str, list[str]]) -> Any:
    tree: dict[str, Any] = {}
    for name, leaf in leaves.items():
        parts = keys.get(name, name.split("/"))
        if len(parts) > MAX_DEPTH:
            raise ValueError(f"{path}: tensor {shorten(name)} is {len(parts)} deep")
        if not parts:  # the tree is one leaf
            return leaf
        node = tree
        for parent in parts[:-1]:
            if isinstance(node, dict):
                node = node.setdefault(parent, {})
        if not isinstance(node, dict) or parts[-1] in node:
            raise ValueError(
                f"{path}: the path {name!r} goes through another tensor, or ends where others go "
                f"on; `like=` says which tree to put both into"
            )
        node[parts[-1]] = leaf
    return tree
