"""The dense layers of an `nnx` model, exchanged for packed ones or left alone by name.

A layer is exchanged only where a `SparseLinear` does all that it did. Layers are nodes of
a graph, not of a tree: one that is used in several places stays one, and so does a
kernel that several layers share.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from jaxsparse.nn.nnx import SparseLinear
from jaxsparse.packed.base import Packed

_CURE = "pack_params and sparsify run the model on packed weights with its own code"
# What a SparseLinear takes over from a Linear; anything else must be as Flax makes it.
_TAKEN = (
    "kernel",
    "bias",
    "in_features",
    "out_features",
    "use_bias",
    "dtype",
    "param_dtype",
    "promote_dtype",
    "preferred_element_type",
)
_HOOKS = ("on_get_value", "on_set_value", "on_create_value", "on_add_axis", "on_remove_axis")


class Place(NamedTuple):
    """Where a node of the graph is held: `holder` has it under `key`, at `path`."""

    holder: Any
    key: Any
    path: str


def exchange(model: nnx.Module, packed: Mapping[str, Packed]) -> tuple[nnx.Module, dict[str, str]]:
    """A copy of the model with a `SparseLinear` for every `nnx.Linear` whose kernel is packed.

    Args:
      model: left as it is.
      packed: by slash path of the kernel.

    Returns:
      The new model; and by the path of each new layer, that of its kernel in `packed`.
      These are more than one layer where several share a kernel.

    Raises:
      ValueError: a path is not the kernel of an `nnx.Linear`, or the layer does something
        that a `SparseLinear` does not.
    """
    model = nnx.clone(model)
    nodes, places = _graph(model)
    exchanged = {}
    for path, weight in packed.items():
        kernel, shared = nodes[path], None
        for place in places[id(kernel)]:
            layer, where = place.holder, place.path.rpartition("/")[0]
            _check_layer(path, place, places.get(id(layer), []), weight)
            new = _sparse(layer, weight)
            if shared is None:
                shared = new
            new.kernel, new.structure = shared.kernel, shared.structure
            exchanged[where] = path
            if layer is model:
                return new, exchanged
            for held in places.get(id(layer), ()):
                _put(held, new)
    return model, exchanged


def replicated_as(weight: Any, kernel: jax.Array) -> Any:
    """The arrays of a tree on all devices that a kernel lies on."""
    if len(kernel.sharding.device_set) == 1 or not isinstance(kernel.sharding, NamedSharding):
        return weight
    return jax.device_put(weight, NamedSharding(kernel.sharding.mesh, PartitionSpec()))


def nodes_by_path(model: nnx.Module) -> dict[str, Any]:
    """Every module and Variable of a model by the first path that leads to it."""
    return _graph(model)[0]


def aliases(model: nnx.Module) -> dict[str, str]:
    """By every further path of a Variable, the first one."""
    nodes, places = _graph(model)
    first = {id(node): path for path, node in nodes.items()}
    found: dict[str, str] = {}
    for node in nodes.values():
        if isinstance(node, nnx.Variable):
            for path in _all_paths(node, places):
                if path != first[id(node)]:
                    found[path] = first[id(node)]
    return found


def _all_paths(node, places, seen=()) -> list[str]:
    """Every path without a cycle that leads to a node."""
    if not places.get(id(node)):
        return [""]
    return [
        f"{above}/{place.key}".removeprefix("/")
        for place in places[id(node)]
        if id(place.holder) not in seen
        for above in _all_paths(place.holder, places, (*seen, id(node)))
    ]


def _graph(model) -> tuple[dict[str, Any], dict[int, list[Place]]]:
    """Nodes by path, and by the id of a node the places that hold it."""
    nodes: dict[str, Any] = {}
    places: dict[int, list[Place]] = {}
    for path, node in nnx.iter_graph(model):
        name = "/".join(map(str, path))
        if isinstance(node, nnx.Module | nnx.Variable):
            nodes[name] = node
        for key, child in _children(node):
            if isinstance(child, nnx.Module | nnx.Variable | list | tuple | dict):
                place = Place(node, key, f"{name}/{key}".removeprefix("/"))
                places.setdefault(id(child), []).append(place)
    return nodes, places


def _children(node) -> Iterator[tuple[Any, Any]]:
    if isinstance(node, nnx.Module):
        yield from vars(node).items()
    elif isinstance(node, list | tuple):
        yield from enumerate(node)
    elif isinstance(node, dict):
        yield from node.items()


def _put(place: Place, new: nnx.Module) -> None:
    if isinstance(place.holder, nnx.Module):
        setattr(place.holder, place.key, new)
    else:
        place.holder[place.key] = new


def _check_layer(path: str, place: Place, holders: list[Place], weight: Packed) -> None:
    """Raises unless a `SparseLinear` does all that the layer does."""
    layer, kind = place.holder, type(place.holder)
    where = path if place.path == path else f"{path} (shared with {place.path})"
    if kind is not nnx.Linear or place.key != "kernel":
        raise ValueError(
            f"{where!r} is not the kernel of an nnx.Linear: {place.key!r} of {kind.__qualname__} "
            f"cannot be exchanged; {_CURE}"
            + ("; or wrap an nnx.Linear in nnx.LoRA" if kind is nnx.LoRALinear else "")
        )
    plain = vars(nnx.Linear(1, 1, rngs=nnx.Rngs(0)))
    for name, value in vars(layer).items():
        if name in _TAKEN or name.startswith("_pytree__"):
            continue
        if name not in plain or plain[name] != value:
            shown = f"{name}={value!r}" if name in plain else f"{type(value).__name__} {name!r}"
            raise ValueError(
                f"{where!r}: a packed layer would lose the {shown} of this nnx.Linear; without "
                f"it the layer can be exchanged, and {_CURE}"
            )
    for name, value in layer.kernel.get_metadata().items():
        names = getattr(value, "spec", value) if name == "out_sharding" else None
        if (name in _HOOKS and value) or any(names or ()):
            raise ValueError(
                f"{where!r} has the metadata {name}={value!r}, which is about the dense kernel; "
                f"without it the layer can be exchanged, and {_CURE}"
            )
    for held in holders:
        if isinstance(held.holder, tuple | nnx.WeightNorm | nnx.SpectralNorm):
            raise ValueError(
                f"{where!r}: the layer is held by a {type(held.holder).__name__} at {held.path!r}, "
                "which cannot hold a packed layer; "
                + ("a list can" if isinstance(held.holder, tuple) else _CURE)
            )
    shape = layer.in_features, layer.out_features
    if weight.shape != shape or (weight.view.inputs, weight.view.outputs) != ((0,), (1,)):
        raise ValueError(
            f"{where!r} of shape {weight.shape} was packed as {weight.view}, inputs "
            f"{weight.view.inputs} and outputs {weight.view.outputs}; an nnx.Linear multiplies by "
            f"{shape}, inputs (0,) and outputs (1,): a rule without axes would work, and {_CURE}"
        )
    if not jnp.issubdtype(weight.dtype, jnp.floating):
        raise ValueError(f"{where!r} is {weight.dtype}; packed layers multiply floating point")


def _sparse(layer: nnx.Linear, weight: Packed) -> SparseLinear:
    """The layer as a packed one, with its very bias and a kernel of the same kind."""
    weight = replicated_as(weight, layer.kernel[...])
    new = SparseLinear(
        layer.in_features,
        layer.out_features,
        weight,
        use_bias=layer.bias is not None,
        dtype=layer.dtype,
        param_dtype=layer.param_dtype,
        promote_dtype=layer.promote_dtype,
        preferred_element_type=layer.preferred_element_type,
        rngs=nnx.Rngs(0),
    )
    new.kernel = type(layer.kernel)(weight.values, **layer.kernel.get_metadata())
    if layer.bias is not None:
        new.bias = layer.bias
    return new
