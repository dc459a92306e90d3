"""What an agent is rewarded by."""

import jax.numpy as jnp
from jaxtyping import Array, Float


def error(accuracy: Float[Array, ""] | float, cost: Float[Array, ""] | float) -> Float[Array, ""]:
    """- (1 - accuracy): as good as it can be under a budget, which the clip of actions keeps.

    Args:
      accuracy: a share in [0, 1].
      cost: is not looked at.

    Example:
      >>> round(float(error(0.7, 1e6)), 6)
      -0.3
    """
    del cost
    return jnp.asarray(accuracy - 1, jnp.float32)


def error_and_cost(
    accuracy: Float[Array, ""] | float, cost: Float[Array, ""] | float
) -> Float[Array, ""]:
    """- (1 - accuracy) ln(cost): small errors at small costs, with no budget or beside one.

    Args:
      accuracy: a share in [0, 1].
      cost: a count above 1, such as that of multiplications.

    Example:
      >>> round(float(error_and_cost(0.7, 568.7e6)), 4)
      -6.0477
    """
    return jnp.asarray((accuracy - 1) * jnp.log(cost), jnp.float32)
