"""Weights of a file in the place of a module's."""

import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from experiments.registry import near_misses
from experiments.weight_files import from_torch, to_torch

Path = tuple[Any, ...]
_DTYPES = ("float32", "bfloat16", "float16")


def fill(
    module: Any,
    names: Mapping[Path, str],
    shapes: Mapping[str, tuple[int, ...]],
    read: Callable[[str], Any],
    file: str | pathlib.Path,
    *,
    by: str,
    dtype: Any = None,
) -> Any:
    """The module with all its parameters taken from tensors in PyTorch's layout.

    Args:
      module: that says the shapes; its values may be abstract.
      names: of the tensor of every parameter.
      shapes: of every tensor that there is.
      read: a tensor by its name; nothing is read before all shapes are right.
      file: where they come from, for errors.
      by: what stated the sizes of the module, for errors.
      dtype: of the parameters; None for those of the module.

    Raises:
      ValueError: a tensor that is missing or of another shape, or that `dtype` does not hold;
        names file and tensor. A dtype other than float32, bfloat16 and float16.
    """
    if dtype is not None and jnp.dtype(dtype) not in map(jnp.dtype, _DTYPES):
        raise ValueError(f"{file}: weights in {jnp.dtype(dtype)}; {', '.join(_DTYPES)} would work")
    graph, state = nnx.split(module)
    flat = nnx.to_flat_state(state)
    for path, variable in flat:
        name, shape = names[path], variable.shape
        if name not in shapes:
            raise ValueError(f"{file} has no tensor {name!r}{near_misses(name, shapes)}")
        if path[-1] == "kernel":
            shape = to_torch(np.broadcast_to(0, shape)).shape
        if shapes[name] != shape:
            raise ValueError(
                f"{file}: {name!r} has shape {shapes[name]}; by {by} it would have {shape}"
            )
    filled = []
    for path, variable in flat:
        array = np.asarray(read(names[path]))
        array = np.ascontiguousarray(from_torch(array) if path[-1] == "kernel" else array)
        kind = variable.dtype if dtype is None else dtype
        found = jnp.asarray(array).astype(kind)
        if not jnp.isfinite(found).all() and np.isfinite(array.astype(np.float32)).all():
            raise ValueError(f"{file}: {names[path]!r} is too large for {kind}; float32 would work")
        filled.append((path, variable.replace(found)))
    return nnx.merge(graph, nnx.from_flat_state(filled))
