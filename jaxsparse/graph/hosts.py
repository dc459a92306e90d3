"""One plan for all devices and processes, applied to sharded arrays."""

from collections.abc import Mapping

import jax
import numpy as np
from jax.core import Tracer
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Int


def whole(leaf: Array) -> np.ndarray:
    """The values of an array on this host, also where other hosts hold a part of it."""
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        return np.asarray(multihost_utils.process_allgather(leaf, tiled=True))
    return np.asarray(leaf)


def gathered(leaf: Array) -> Array:
    """The array on every device of its mesh, so that any axis can be indexed."""
    sharding = getattr(leaf, "sharding", None)
    if isinstance(leaf, Tracer) or not isinstance(sharding, NamedSharding):
        return leaf
    return jax.device_put(leaf, NamedSharding(sharding.mesh, PartitionSpec()))


def placed_as(leaf: Array, model: Array) -> Array:
    """The array with the sharding of another one."""
    if isinstance(model, Tracer) or not isinstance(model, jax.Array):
        return leaf
    return jax.device_put(leaf, model.sharding)


def of_first_process(
    permutations: Mapping[int, Int[np.ndarray, " n"]], sizes: Mapping[int, int]
) -> dict[int, Int[np.ndarray, " n"]]:
    """The permutations that the first process found, on every process.

    Sums may round differently on hosts of different make, and one channel out of
    place is another model: what one of them decides is decided.

    Args:
      permutations: found on this process, by group id.
      sizes: of every group that any process may have permuted.
    """
    if jax.process_count() == 1:
        return dict(permutations)
    orders = {id: permutations.get(id, np.arange(size)) for id, size in sizes.items()}
    agreed = multihost_utils.broadcast_one_to_all(orders)
    found = {id: np.asarray(order) for id, order in agreed.items()}
    return {id: order for id, order in found.items() if (order != np.arange(order.size)).any()}
