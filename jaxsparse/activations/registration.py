"""Frozen dataclasses as pytrees, ones that `jax.export` can write into its files."""

import dataclasses
import json
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.export

from jaxsparse.packed import as_tuples

Kind = TypeVar("Kind")


def pytree(**static: Callable[[Any], Any]) -> Callable[[type[Kind]], type[Kind]]:
    """Registers a dataclass whose fields are arrays and pytrees, but for the static ones.

    Args:
      static: by field, what makes its value from the JSON of `dataclasses.asdict`.
    """

    def register(kind: type[Kind]) -> type[Kind]:
        names = [field.name for field in dataclasses.fields(kind)]  # pyright: ignore[reportArgumentType]
        data = [name for name in names if name not in static]
        jax.tree_util.register_dataclass(kind, data, list(static))

        def serialize(aux):
            return json.dumps([dataclasses.asdict(value) for value in aux]).encode()

        def deserialize(stored):
            values = as_tuples(json.loads(bytes(stored)))
            return tuple(make(value) for make, value in zip(static.values(), values, strict=True))

        jax.export.register_pytree_node_serialization(
            kind,
            serialized_name=f"jaxsparse.{kind.__name__}",
            serialize_auxdata=serialize,
            deserialize_auxdata=deserialize,
        )
        return kind

    return register
