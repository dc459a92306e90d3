"""Trees aligned by path.

Frameworks wrap one and the same weight differently: a linen dict holds arrays,
an `nnx.State` holds Variables (Param at init, OptVariable in the optimizer's
state, plain arrays at update), partitioned linen parameters hold metadata boxes.
A slash path such as `"encoder/layers_0/mlp/kernel"` names the weight in all of
them, so everything here is keyed by path and no two trees are ever zipped.
"""

import difflib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from flax.core import meta

Tree = Any


def leaves_by_path(tree: Tree, is_leaf: Callable[[Any], bool] | None = None) -> dict[str, Any]:
    """Returns `{"slash/path": leaf}`, in the order of the tree.

    Boxes that hold one array (`nnx.Variable`, linen's `Partitioned`) are opened
    and add nothing to the path. Nodes without leaves (`None`,
    `optax.MaskedNode()`) do not appear.

    Args:
      tree: any pytree.
      is_leaf: which nodes to leave whole, such as `is_packed`; without it a packed
        weight at `up/kernel` is the leaves `up/kernel/values` and so on.

    Raises:
      ValueError: if two leaves share a path, as in `{"a/b": x, "a": {"b": y}}`.
    """
    found: dict[str, Any] = {}
    for path, leaf in flatten(tree, is_leaf):
        if path in found:
            raise ValueError(f"two leaves of the tree share the path {path!r}")
        found[path] = leaf
    return found


def replace_by_path(
    tree: Tree, new: Mapping[str, Any], is_leaf: Callable[[Any], bool] | None = None
) -> Tree:
    """Returns `tree` with the leaves named in `new` exchanged, the others as they are.

    Raises:
      KeyError: if `new` names a path that the tree lacks; near misses are listed.
    """
    old = leaves_by_path(tree, is_leaf)
    for path in new:
        if path not in old:
            raise KeyError(f"the tree has no leaf {path!r}; {near_misses(path, old)}")
    return jax.tree.unflatten(
        jax.tree.structure(tree, is_leaf), [new.get(path, leaf) for path, leaf in old.items()]
    )


def flatten(tree: Tree, is_leaf: Callable[[Any], bool] | None = None) -> Iterator[tuple[str, Any]]:
    """Yields (slash path, leaf) as `jax.tree.leaves` orders them; paths may repeat."""
    for keys, leaf in flatten_keys(tree, is_leaf):
        yield "/".join(keys), leaf


def flatten_keys(
    tree: Tree, is_leaf: Callable[[Any], bool] | None = None
) -> Iterator[tuple[tuple[str, ...], Any]]:
    """`flatten` with the parts of a path apart: a key may have slashes of its own."""
    whole = is_leaf or (lambda node: False)
    nodes, _ = jax.tree_util.tree_flatten_with_path(tree, lambda n: _is_box(n) or whole(n))
    for outer, node in nodes:
        if not _is_box(node) or whole(node):
            yield names(outer), node
            continue
        for inner, leaf in jax.tree_util.tree_flatten_with_path(node, is_leaf)[0]:
            yield names((*outer, *inner[1:])), leaf  # the box's own key says nothing


def near_misses(name: str, known: Iterable[str], limit: int = 5) -> str:
    """Returns `"did you mean 'a', 'b'?"`, or the first names where none is close."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=limit, cutoff=0.4)
    if close:
        return "did you mean " + ", ".join(map(repr, close)) + "?"
    shown = ", ".join(map(repr, names[:limit])) + (", ..." if len(names) > limit else "")
    return f"known: {shown}" if names else "there is none"


def any_of(paths: Iterable[str]) -> str:
    """The regular expression that matches these paths and no other.

    >>> any_of(["layer/w", "a.b"])
    'layer/w|a\\\\.b'
    """
    return "|".join(map(re.escape, paths))


def floats_of(leaves: Mapping[str, Any], paths: str, who: str) -> dict[str, jax.Array]:
    """The leaves of floats whose paths match a regular expression.

    Args:
      leaves: by path.
      paths: the expression, of whole paths.
      who: asks, for the error.

    Raises:
      ValueError: there is none; with near misses.
    """
    found = {
        path: jnp.asarray(leaf)
        for path, leaf in leaves.items()
        if re.fullmatch(paths, path)
        and hasattr(leaf, "dtype")
        and jnp.issubdtype(leaf.dtype, jnp.floating)
    }
    if not found:
        raise ValueError(
            f"{who}: paths={paths!r} names no leaf of floats; {near_misses(paths, leaves)}"
        )
    return found


def apart(tree: Any) -> tuple[list[Any], tuple[Any, ...], Any]:
    """The arrays of a tree, which `jit` may trace, the rest of its leaves, and their structure.

    Each list has None in the place of what is in the other.

    >>> arrays, rest, structure = apart({"w": jax.numpy.ones(2), "name": "up"})
    >>> rest, together(arrays, rest, structure)["name"]
    (('up', None), 'up')
    """
    leaves, structure = jax.tree.flatten(tree)
    arrays = [leaf if hasattr(leaf, "dtype") else None for leaf in leaves]
    return arrays, tuple(None if hasattr(x, "dtype") else x for x in leaves), structure


def together(arrays: Sequence[Any], rest: Sequence[Any], structure: Any) -> Any:
    """The tree that was taken `apart`."""
    leaves = [a if r is None else r for a, r in zip(arrays, rest, strict=True)]
    return jax.tree.unflatten(structure, leaves)


def becomes(number: Any, shape: tuple[int, ...], dtype: Any) -> bool:
    """Whether `jit` makes such an array of a Python number, as of a `TrainState`'s step.

    >>> becomes(0, (), jax.numpy.int32), becomes(0, (), jax.numpy.float32)
    (True, False)
    """
    kinds = {bool: jax.numpy.bool_, int: jax.numpy.signedinteger, float: jax.numpy.floating}
    kind = kinds.get(type(number))
    return kind is not None and tuple(shape) == () and jax.numpy.issubdtype(dtype, kind)


def _is_box(node: Any) -> bool:
    return isinstance(node, nnx.Variable | meta.AxisMetadata)


def names(key_path: Iterable[Any]) -> tuple[str, ...]:
    """The parts of a path as JAX gives it: keys, attributes and numbers, as text."""
    return tuple(str(_key(entry)) for entry in key_path)


def _key(entry: Any) -> Any:
    for attribute in ("key", "name", "idx"):
        if hasattr(entry, attribute):
            return getattr(entry, attribute)
    return entry
