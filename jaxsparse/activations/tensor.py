"""Features at some places of a grid."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Int32, Shaped

from jaxsparse.activations.bounds import Bounds
from jaxsparse.activations.faults import poison, require
from jaxsparse.activations.sites import Sites, same_sites, sites
from jaxsparse.registration import pytree


@pytree()
@dataclasses.dataclass(frozen=True, eq=False)
class SparseTensor:
    """Features with the sites they stand on: a pytree of static shapes.

    What rows beyond `count` hold is never read.

    Attributes:
      features: a row for each site.
      sites: where they stand.
    """

    features: Shaped[Array, "capacity channels"]
    sites: Sites

    @property
    def coordinates(self) -> Int32[Array, "capacity axes"]:
        """Rows of (batch, *coordinate), -1 beyond the count."""
        return self.sites.coordinates

    @property
    def count(self) -> Int32[Array, ""]:
        """Rows in use."""
        return self.sites.count

    @property
    def valid(self) -> Bool[Array, "capacity"]:
        """Which rows are in use."""
        return self.sites.valid

    @property
    def bounds(self) -> Bounds:
        """The box the sites lie in."""
        return self.sites.bounds

    @property
    def capacity(self) -> int:
        """Rows, used or not."""
        return self.sites.capacity

    @property
    def channels(self) -> int:
        """Features of a row."""
        return self.features.shape[-1]

    def with_features(self, features: Shaped[Array, "capacity channels"]) -> "SparseTensor":
        """Other features at the same sites.

        Raises:
          ValueError: another number of rows.
        """
        if features.ndim != 2 or features.shape[0] != self.capacity:
            raise ValueError(
                f"features of shape {features.shape} do not stand on {self.capacity} rows."
            )
        return SparseTensor(features, self.sites)

    def map(self, function: Callable[[jax.Array], jax.Array]) -> "SparseTensor":
        """A function of the features, such as `jax.nn.relu`."""
        return self.with_features(function(self.features))

    def __add__(self, other: "SparseTensor") -> "SparseTensor":
        ok = same_sites(self.sites, other.sites, "a sum of sparse tensors")
        return flagged(self.features + other.features, self.sites, ok & other.sites.ok)

    def __repr__(self) -> str:
        kind = getattr(self.features, "dtype", type(self.features).__name__)
        shape = getattr(self.features, "shape", None)
        return f"SparseTensor({shape}, {kind}, {self.bounds})"


def flagged(features: jax.Array, where: Sites, ok: Bool[Array, ""]) -> SparseTensor:
    """Features that are NaN, and sites that say so, unless all was well on the way to them.

    Raises:
      ValueError: it was not, and this is known.
    """
    ok = ok & where.ok
    require(
        ok,
        "something was lost or mistaken on the way to this tensor, under jit; run what made it "
        "through checked() to hear what.",
    )
    return SparseTensor(poison(features, ok), dataclasses.replace(where, ok=ok))


def sparse_tensor(
    coordinates: Int[Array | np.ndarray, "n axes"],
    features: Float[Array | np.ndarray, "n channels"],
    bounds: Bounds | None = None,
    *,
    count: int | Int32[Array, ""] | None = None,
    capacity: int | None = None,
) -> SparseTensor:
    """A sparse tensor of given rows, in the order given.

    Args:
      coordinates, bounds, count, capacity: as in `sites`.
      features: a row for each of the coordinates; those beyond `count` may hold anything.

    Raises:
      TypeError, ValueError: as `sites`; features of another number of rows.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxsparse import activations as act
      >>> act.sparse_tensor(jnp.array([[0, 2, 3], [1, 0, 1]]), jnp.ones((2, 5)), capacity=8)
      SparseTensor((8, 5), float32, bounds of 2 batches of [0, 3) x [1, 4))
    """
    where = sites(coordinates, bounds, count=count, capacity=capacity)
    if np.ndim(features) != 2 or np.shape(features)[0] != coordinates.shape[0]:
        raise ValueError(
            f"features have shape {np.shape(features)}, need ({coordinates.shape[0]}, channels): a "
            "row for each of the coordinates."
        )
    room = where.capacity - coordinates.shape[0]
    return flagged(jnp.pad(features, ((0, room), (0, 0))), where, where.ok)


def concatenate(*tensors: SparseTensor) -> SparseTensor:
    """The channels of several tensors on the same sites, one behind the other.

    Raises:
      ValueError: their sites differ (flagged under `jit`).

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxsparse import activations as act
      >>> x = act.sparse_tensor(jnp.array([[0, 2, 3]]), jnp.ones((1, 5)))
      >>> act.concatenate(x, x.map(jnp.negative)).channels
      10
    """
    first, *others = tensors
    ok = first.sites.ok
    for other in others:
        ok = ok & same_sites(first.sites, other.sites, "concatenate") & other.sites.ok
    features = jnp.concatenate([tensor.features for tensor in tensors], axis=1)
    return flagged(features, first.sites, ok)
