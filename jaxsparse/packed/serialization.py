"""Packed weights and masks through `flax.serialization`: to_bytes, from_bytes, state dicts.

Flax asks no more of a state dict than that its keys agree; what is restored here must
also be what the target is, for a packed weight of another shape multiplies wrongly.
"""

import dataclasses
from typing import Any

import numpy as np
from flax import serialization

from jaxsparse.packed.base import Packed
from jaxsparse.packed.fields import from_json, on_device, to_json
from jaxsparse.patterns.base import GroupMask

_FREE = ("nnz",)  # how many are kept may differ: the places are restored, too


def packed_to_state(packed: Packed) -> dict[str, Any]:
    """The arrays of a packed weight, and its fields: a state dict."""
    if packed.values is None:
        raise ValueError(f"{packed!r} is a structure without values; with_values completes it")
    arrays = {n: a for n in packed.array_names if (a := getattr(packed, n)) is not None}
    return {"arrays": arrays, "fields": _without_lists(to_json(packed))}


def packed_from_state(target: Packed, state: dict[str, Any]) -> Packed:
    """The packed weight of a state dict.

    Raises:
      ValueError: it is not what the target is; names the path and the field.
    """
    where = f"{serialization.current_path()}: a packed weight"
    if set(state) != {"arrays", "fields"} or not isinstance(state["fields"], dict):
        raise ValueError(f"{where} has the state arrays and fields, not {sorted(state)}")
    fields = _with_lists(state["fields"])
    expected = to_json(target)
    for name in ("kind", *sorted(expected.keys() | fields.keys())):
        if name not in _FREE and fields.get(name) != expected.get(name):
            raise ValueError(
                f"{where} of {name} {fields.get(name)} does not fit {target!r}, "
                f"of {name} {expected.get(name)}"
            )
    try:
        found = from_json(fields, state["arrays"])
    except ValueError as error:
        raise ValueError(f"{where} cannot be restored to {target!r}: {error}") from error
    for name in ("values", "scales"):
        here, there = (getattr(p, name) for p in (found, target))
        if there is not None and (here is None or here.dtype != there.dtype):
            kind = "none" if here is None else here.dtype
            raise ValueError(f"{where} has {name} of {kind}, {target!r} of {there.dtype}")
    arrays = {name: on_device(np.asarray(array)) for name, array in state["arrays"].items()}
    return dataclasses.replace(found, **arrays)  # checks the indices


def _without_lists(fields: dict[str, Any]) -> dict[str, Any]:
    """Arrays for lists, which a state dict does not know."""
    arrays = {k: np.asarray(v, np.int64) for k, v in fields.items() if isinstance(v, list)}
    inner = {k: _without_lists(v) for k, v in fields.items() if isinstance(v, dict)}
    return fields | arrays | inner


def _with_lists(fields: dict[str, Any]) -> dict[str, Any]:
    lists = {k: v.tolist() for k, v in fields.items() if isinstance(v, np.ndarray)}
    inner = {k: _with_lists(v) for k, v in fields.items() if isinstance(v, dict)}
    return fields | lists | inner


def _mask_to_state(mask: GroupMask) -> dict[str, Any]:
    return {"groups": mask.groups}


def _mask_from_state(target: GroupMask, state: dict[str, Any]) -> GroupMask:
    groups: Any = state.get("groups")
    shape = target.groups.shape
    if np.shape(groups) != shape or groups.dtype != bool:
        dtype = getattr(groups, "dtype", type(groups).__name__)
        raise ValueError(
            f"{serialization.current_path()}: a mask of shape {np.shape(groups)}, {dtype}, does "
            f"not fit {target.pattern} on {target.view.shape}: bool {shape}"
        )
    return GroupMask(groups, target.pattern, target.view)


serialization.register_serialization_state(
    GroupMask, _mask_to_state, _mask_from_state, override=True
)
