"""What is exported: a function or a module, its parameters, and inputs of any batch."""

import contextlib
import functools
import inspect
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax import export

from jaxsparse import jaxprs
from jaxsparse.comparing import pure
from jaxsparse.evaluation import active
from jaxsparse.packed.base import is_packed
from jaxsparse.products.sparsify import sparsify, takes_packed
from jaxsparse.trees import leaves_by_path, names

Tree = Any


class ExportError(ValueError):
    """Something cannot leave JAX in this format: says what, where, and what would."""


def function_of(model: Callable[..., Any], params: Tree = None) -> Callable[..., Any]:
    """A function of (params, *inputs) that may be packed; of (inputs) without `params`.

    Raises:
      TypeError: for what is not callable, and a module together with parameters.
      ExportError: for a module that is not in evaluation mode.
    """
    if not callable(model):
        raise TypeError(f"{type(model).__name__} is neither a function nor a module")
    if isinstance(model, nnx.Module):
        if params is not None:
            raise TypeError(
                f"a {type(model).__name__} has its own parameters: without params=, or with a "
                "function of (params, *inputs) such as "
                "lambda p, x: nnx.merge(nnx.graphdef(model), p)(x), it would work"
            )
        if found := active(model):
            raise ExportError(f"{found}; model.eval() first would work")
        return pure(model)
    packed = any(map(is_packed, leaves_by_path(params, is_packed).values()))
    if packed and not takes_packed(model):
        return sparsify(model)
    return model


def shapes_of(inputs: Sequence[Any], batch: str | None) -> tuple[Any, ...]:
    """The inputs as shapes, with one symbol for the first axis of all of them.

    Args:
      inputs: trees of arrays or `jax.ShapeDtypeStruct`. Those with symbolic sizes stay as
        they are, and so do scalars.
      batch: the symbol; None leaves all sizes as they are.

    Raises:
      ExportError: if first axes differ, so that they are not all the batch; for a symbol
        that is no name, and an input that is a PRNG key.

    Example:
      >>> shapes_of((np.zeros((8, 64), np.float32),), "b")
      (ShapeDtypeStruct(shape=(b, 64), dtype=float32),)
    """
    _check_symbol(batch)
    for path, leaf in leaves_by_path(tuple(inputs)).items():
        if hasattr(leaf, "dtype") and jax.numpy.issubdtype(leaf.dtype, jax.dtypes.extended):
            raise ExportError(
                f"input {path} is a PRNG key, {leaf.dtype}; jax.random.key_data of it, and "
                "jax.random.wrap_key_data in the model, would work"
            )
    shapes = jax.tree.map(_shape, tuple(inputs))
    leaves = leaves_by_path(shapes)
    if batch is None or any(map(_is_open, leaves.values())):
        return shapes
    first = {path: leaf.shape[0] for path, leaf in leaves.items() if leaf.shape}
    if len(set(first.values())) > 1:
        said = [f"input {path} has {size}" for path, size in first.items()]
        more = f" and {len(said) - 8} more" if len(said) > 8 else ""
        sizes = ", ".join(said[:8]) + more
        raise ExportError(
            f"batch={batch!r} is to be the first axis of every input, and these differ: {sizes}; "
            "weights are no inputs and go in params=; batch=None, with sizes of "
            "jax.export.symbolic_shape where they are open, would work"
        )
    (size,) = export.symbolic_shape(batch)

    def opened(leaf):
        return jax.ShapeDtypeStruct((size, *leaf.shape[1:]), leaf.dtype) if leaf.shape else leaf

    return jax.tree.map(opened, shapes)


def _check_symbol(batch: Any) -> None:
    if batch is None:
        return
    try:
        if not batch.isidentifier():
            raise ValueError(batch)
        export.symbolic_shape(batch)
    except (AttributeError, ValueError) as error:
        raise ExportError(
            f"batch={batch!r} is no name for the first axis of the inputs; batch='b' would work, "
            "and None for the sizes that they have"
        ) from error


def _is_open(shape: jax.ShapeDtypeStruct) -> bool:
    return not all(isinstance(size, int) for size in shape.shape)


def _shape(leaf: Any) -> jax.ShapeDtypeStruct:
    if isinstance(leaf, jax.ShapeDtypeStruct):
        return leaf
    array = leaf if isinstance(leaf, jax.Array) else np.asarray(leaf)
    return jax.ShapeDtypeStruct(array.shape, jax.dtypes.canonicalize_dtype(array.dtype))


def input_names(model: Callable[..., Any], inputs: Sequence[Any], skip: int) -> list[str]:
    """Names for the leaves of the inputs, after the arguments of the model.

    Args:
      model: a function or a module.
      inputs: trees.
      skip: how many arguments come before them.

    Example:
      >>> input_names(lambda params, ids, mask: ids, (0, {"a": 1, "b": 2}), 1)
      ['ids', 'mask.a', 'mask.b']
    """
    try:
        kinds = inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD
        parameters = inspect.signature(model).parameters.values()
        known = [p.name for p in parameters if p.kind in kinds][skip:]
    except (TypeError, ValueError):  # code that is not Python
        known = []
    known += [f"input{i}" for i in range(len(known), len(inputs))]
    found = []
    for name, tree in zip(known, inputs, strict=False):
        for keys, _ in jax.tree_util.tree_flatten_with_path(tree)[0]:
            found.append(".".join([name, *names(keys)]))
    return found


def output_names(outputs: Tree) -> list[str]:
    """Names for the leaves of the outputs: their paths.

    >>> output_names({"logits": 0, "hidden": [1, 2]}), output_names(0)
    (['hidden.0', 'hidden.1', 'logits'], ['output'])
    """
    paths = [names(keys) for keys, _ in jax.tree_util.tree_flatten_with_path(outputs)[0]]
    return [
        ".".join(path if path and not path[0].isdigit() else ("output", *path)) for path in paths
    ]


def closed_over(function: Callable[..., Any], params: Tree) -> Callable[..., Any]:
    """A function of the inputs alone, with the parameters among its constants."""
    return function if params is None else functools.partial(function, params)


@contextlib.contextmanager
def of_any_batch() -> Iterator[None]:
    """Has a block in which a model is traced name the place that must know the batch.

    Raises:
      ExportError: the model compares symbolic sizes that may be either.
    """
    try:
        yield
    except jax.errors.InconclusiveDimensionOperation as error:
        reason = str(error).strip().partition("\n")[0].rstrip(".")
        raise ExportError(
            f"{reason}, asked for in {_asked_in(error)}; batch=None would work, for the sizes of "
            "these inputs"
        ) from error


def _asked_in(error: Exception) -> str:
    """The last place on the way to an error that is neither JAX's code nor ours."""
    frames = traceback.extract_tb(error.__traceback__)
    theirs = [frame for frame in frames if not frame.filename.startswith(jaxprs.LIBRARIES)]
    last = (theirs or frames)[-1]
    return f"{last.filename}:{last.lineno} ({last.name})"
