"""The weights that read units: where a mask or a scale of a unit is exact.

What is read of a unit is read by weights alone (`js.graph.structure`), and each product is linear
in its weight. So to multiply a unit's contribution by m is to multiply its entries of the readers
by m, whatever stands between the weights that write it and those that read it. On the writers'
side that holds only of m = 0 and m = 1, and only where activations map 0 to 0.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxsparse.graph import Member, StructuredGroup
from jaxsparse.trees import Tree, leaves_by_path, replace_by_path


def readers(group: StructuredGroup) -> list[Member]:
    """The members that sum over the units of a group."""
    return [member for member in group.members if member.role == "reads"]


def scaled(params: Tree, groups: Iterable[StructuredGroup], factors: Mapping[str, Any]) -> Tree:
    """Parameters whose units contribute so many times as much.

    Args:
      params: the weights; products with factors are formed in float32 or better, then rounded
        to the weight's dtype.
      groups: which units there are.
      factors: by name of a group a number for each unit, (units,); groups without stay.
    """
    leaves, new = leaves_by_path(params), {}
    for group in groups:
        if group.name not in factors:
            continue
        for member in readers(group):
            leaf = jnp.asarray(new.get(member.path, leaves[member.path]))
            new[member.path] = (_wide(leaf) * _along(member, factors[group.name], leaf)).astype(
                leaf.dtype
            )
    return replace_by_path(params, new)


def contribution(
    group: StructuredGroup, weights: Mapping[str, Array], gradients: Mapping[str, Array]
) -> Float[Array, " units"]:
    """dL/dm of every unit's factor m, at m = 1: the sum of dL/dW W over the readers' entries."""
    total = jnp.zeros(group.units, jnp.float32)
    for member in readers(group):
        products = _wide(weights[member.path]) * _wide(gradients[member.path])
        others = tuple(axis for axis in range(products.ndim) if axis != member.axis)
        total = total + products.sum(others)[member.positions(group.units)].sum(1)
    return total


def _along(member: Member, factors: Any, leaf: Array) -> Array:
    """Factors of the units in the shape that multiplies the leaf, 1 elsewhere."""
    factors = jnp.asarray(factors)
    vector = jnp.ones(member.axis_size, factors.dtype)
    vector = vector.at[member.positions(len(factors))].set(factors[:, None])
    return vector.reshape([-1 if axis == member.axis else 1 for axis in range(leaf.ndim)])


def _wide(array: Array) -> Array:
    return array.astype(jnp.promote_types(array.dtype, jnp.float32))
