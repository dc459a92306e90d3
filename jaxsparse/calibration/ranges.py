"""What range the codes of activations have to hold: statistics for `calibration.observe`."""

from typing import Any

import jax.numpy as jnp

from jaxsparse.calibration.reducers import Reducer, widened


def minmax() -> Reducer:
    """The least and the largest of all values that a weight meets: nothing calibrated saturates.

    The state has `low` and `high`, float32. A range holds 0, as codes have to.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxsparse.calibration import observe
      >>> x = jnp.array([[1.0, -2.0]])
      >>> _, states = observe(lambda w, x: x @ w, jnp.ones((2, 3)), x, reducer=minmax())
      >>> [(float(state["low"]), float(state["high"])) for state in states.values()]
      [(-2.0, 1.0)]
    """

    def update(state, met, site):
        del site
        low, high = ends(met.array)
        return {"low": jnp.minimum(state["low"], low), "high": jnp.maximum(state["high"], high)}

    return Reducer(lambda site: {"low": _zero(), "high": _zero()}, update)


def moving_average(decay: float = 0.9) -> Reducer:
    """Averages of the ends of every array met: low <- decay low + (1 - decay) min x.

    The first array decides alone. One array of outliers moves the range by 1 - decay of them.

    Args:
      decay: weight of what was met before, in [0, 1).

    Raises:
      ValueError: `decay` is no such number.
    """
    if not 0 <= decay < 1:
        raise ValueError(f"moving_average: decay={decay!r} is not in [0, 1); 0.9 would work")

    def averaged(state, low, high):
        share = jnp.where(state["arrays"] == 0, 0.0, decay)
        return {
            "low": share * state["low"] + (1 - share) * low,
            "high": share * state["high"] + (1 - share) * high,
        }

    return _counting(averaged, ends)


def percentile(share: float = 0.9999) -> Reducer:
    """Quantiles of every array met, averaged: low is that of 1 - share, high that of share.

    Args:
      share: of the values that do not saturate at one end, in (0.5, 1].

    Raises:
      ValueError: `share` is no such number.
    """
    if not 0.5 < share <= 1:
        raise ValueError(f"percentile: share={share!r} is not in (0.5, 1]; 0.9999 would work")

    def quantiles(array):
        found = jnp.quantile(widened(array), jnp.array([1 - share, share]))
        return jnp.minimum(found[0], 0.0), jnp.maximum(found[1], 0.0)

    def mean(state, low, high):
        count = state["arrays"].astype(jnp.float32)
        return {
            name: state[name] + (new - state[name]) / (count + 1)
            for name, new in (("low", low), ("high", high))
        }

    return _counting(mean, quantiles)


def _counting(combine, ends) -> Reducer:
    """A reducer of ends that knows how many arrays came before."""

    def update(state, met, site):
        del site
        if not met.array.size:
            return state
        return combine(state, *ends(met.array)) | {"arrays": state["arrays"] + 1}

    return Reducer(
        lambda site: {"low": _zero(), "high": _zero(), "arrays": jnp.zeros((), jnp.int32)}, update
    )


def _zero():
    return jnp.zeros((), jnp.float32)


def ends(array: Any) -> tuple[Any, Any]:
    """The least and the largest number, and 0 in between: float32."""
    wide = widened(array).astype(jnp.float32)
    return jnp.min(wide, initial=0.0), jnp.max(wide, initial=0.0)
