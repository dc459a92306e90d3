"""Where a layer that starts packed has its weights: random places, fixed for good."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from jaxsparse.packed.base import Packed
from jaxsparse.packed.packing import storage_of
from jaxsparse.patterns.base import Pattern
from jaxsparse.patterns.views import View


def random_structure(
    key: PRNGKeyArray, shape: tuple[int, int], pattern: Pattern, sparsity: float | None = None
) -> Packed:
    """A packed weight without values, its places drawn uniformly.

    Args:
      key: for the places.
      shape: (K, N).
      pattern: `Block`, `NM` or `Unstructured`.
      sparsity: fraction of the groups to leave out; n - round(s n) stay. For
        `NM`, None.

    Returns:
      The structure, for `Packed.with_values`. May run under `jit`: its sizes
      depend on the arguments, not on the key.

    Raises:
      TypeError: for another pattern.
      ValueError: for a sparsity outside [0, 1), or one that is missing.
    """
    storage = storage_of(pattern)
    if pattern.fixed:
        if sparsity is not None and not math.isclose(sparsity, pattern.max_sparsity):
            raise ValueError(f"{pattern} has its own sparsity, not {sparsity}.")
    elif sparsity is None or not 0 <= sparsity < 1:
        raise ValueError(f"sparsity={sparsity} of {pattern} must lie in [0, 1).")
    return storage.draw(key, View(tuple(shape), (), (0,), (1,)), pattern, sparsity)


def normal_values(key: PRNGKeyArray, structure: Packed, dtype=jnp.float32) -> Float[Array, "..."]:
    """Values with variance 1 / (inputs that an output keeps), as LeCun's for a dense layer."""
    layout = structure.layout
    fan_in = max(1.0, layout.stored / layout.padded[1])
    return jax.random.normal(key, layout.values_shape, dtype) / math.sqrt(fan_in)
