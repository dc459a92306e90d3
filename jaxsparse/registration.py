"""Frozen dataclasses as pytrees, ones that `jax.export` can write into its files."""

import dataclasses
import json
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
import jax.export

Kind = TypeVar("Kind")
Makers = Mapping[str, Callable[[Any], Any]]


def pytree(**static: Callable[[Any], Any]) -> Callable[[type[Kind]], type[Kind]]:
    """Registers a dataclass whose fields are arrays and pytrees, but for the static ones.

    Args:
      static: by field, what makes its value from the JSON of `dataclasses.asdict`.
    """

    def register(kind: type[Kind]) -> type[Kind]:
        names = [field.name for field in dataclasses.fields(kind)]  # pyright: ignore[reportArgumentType]
        data = [name for name in names if name not in static]
        jax.tree_util.register_dataclass(kind, data, list(static))
        exportable(kind, static)
        return kind

    return register


def exportable(kind: type, static: Makers) -> None:
    """Has `jax.export` write the static fields of a registered pytree as JSON, and read them.

    Args:
      kind: its class; what its flattening sets aside are the values of `static`, in order.
      static: by field, what makes its value from JSON whose lists are tuples again.
    """

    def serialize(aux):
        fields = dict(zip(static, aux, strict=True))
        return json.dumps(fields, default=dataclasses.asdict).encode()

    def deserialize(stored):
        fields = _as_tuples(json.loads(bytes(stored)))
        return tuple(make(fields[name]) for name, make in static.items())

    jax.export.register_pytree_node_serialization(
        kind,
        serialized_name=f"jaxsparse.{kind.__name__}",
        serialize_auxdata=serialize,
        deserialize_auxdata=deserialize,
    )


def _as_tuples(node: Any) -> Any:
    if isinstance(node, dict):
        return {key: _as_tuples(value) for key, value in node.items()}
    return tuple(map(_as_tuples, node)) if isinstance(node, list) else node
