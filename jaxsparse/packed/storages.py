"""A storage joins JAX, `jax.export`, Flax and files, all by one decorator."""

import dataclasses
import operator
import typing
from typing import TypeVar

import jax
from flax import serialization

from jaxsparse.packed.base import OPTIONAL, Packed, rebuild
from jaxsparse.packed.fields import CHECKS, KINDS
from jaxsparse.packed.serialization import packed_from_state, packed_to_state
from jaxsparse.patterns.views import View
from jaxsparse.registration import exportable

PackedKind = TypeVar("PackedKind", bound=Packed)


def register(kind: type[PackedKind]) -> type[PackedKind]:
    """Makes a storage a pytree that `jax.export`, `flax.serialization` and safetensors know.

    Raises:
      TypeError: a field that is no array is neither an int nor a pair of them.
    """
    names = [f.name for f in dataclasses.fields(kind)]
    arrays = tuple(n for n in names if n in ("values", *kind.index_arrays, *OPTIONAL))
    static = tuple(name for name in names if name not in arrays)
    types = typing.get_type_hints(kind)
    for name in static:
        if name != "view" and types[name] not in CHECKS:
            raise TypeError(
                f"field {name!r} of {kind.__name__} is {types[name]}; int and tuple[int, int] can "
                "be saved, and arrays that `index_arrays` names"
            )
    kind.array_names = arrays
    KINDS[kind.__name__] = kind

    # Every call with a packed argument flattens it: one step, not a loop.
    fields_of = operator.attrgetter(*static, *arrays)

    def flatten(packed):
        fields = fields_of(packed)
        return fields[len(static) :], fields[: len(static)]

    def unflatten(aux, children):
        return rebuild(kind, dict(zip(static + arrays, (*aux, *children), strict=True)))

    def flatten_with_keys(packed):
        children, aux = flatten(packed)
        return tuple(zip(map(jax.tree_util.GetAttrKey, arrays), children, strict=True)), aux

    jax.tree_util.register_pytree_with_keys(kind, flatten_with_keys, unflatten, flatten)

    makers = dict.fromkeys(static, lambda value: value)
    exportable(kind, makers | {"view": lambda fields: View(**fields)})
    serialization.register_serialization_state(
        kind, packed_to_state, packed_from_state, override=True
    )
    return kind
