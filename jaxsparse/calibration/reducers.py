"""What is kept of the values that a weight meets."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class Reducer(NamedTuple):
    """How values become a state; two functions that `jit` can trace.

    Attributes:
      init: called as init(site): the state before any value, a pytree of arrays, of one
        kernel.
      update: called as update(state, met, site) at each product: the state with what the
        weight meets there, `met.array` or as a matrix `met.rows()`.

    Example:
      >>> def update(state, met, site):
      ...     return state + met.rows().sum(0)
      >>> mean = Reducer(lambda site: jnp.zeros(site.inputs), update)
    """

    init: Callable[[Any], Any]
    update: Callable[[Any, Any, Any], Any]


def statistics(state: Any) -> dict[str, Any]:
    """What a state of `gram` or `square_norms` holds of the inputs, also within another state.

    >>> sorted(statistics({"first": {"squares": 1.0, "rows": 2}, "mine": 3.0}))
    ['squares']
    """
    leaves = jax.tree_util.tree_flatten_with_path(state)[0]
    named = {str(getattr(keys[-1], "key", "")): leaf for keys, leaf in leaves if keys}
    return {name: named[name] for name in ("products", "squares") if name in named}


def widened(array: Any) -> Any:
    """Real numbers in float32 at least."""
    if jnp.iscomplexobj(array):
        raise ValueError(f"a weight meets {array.dtype}: statistics are of real numbers alone")
    return array.astype(jnp.promote_types(array.dtype, jnp.float32))


def _zero(*shape):
    return jnp.zeros(shape, jnp.float32)


def _no_rows():
    return jnp.zeros((), jnp.int32)


def both(first: Reducer, second: Reducer) -> Reducer:
    """Two statistics of the same values; the state has theirs as `first` and `second`."""

    def init(site):
        return {"first": first.init(site), "second": second.init(site)}

    def update(state, met, site):
        return {
            "first": first.update(state["first"], met, site),
            "second": second.update(state["second"], met, site),
        }

    return Reducer(init, update)


def gram() -> Reducer:
    """H = XᵀX over all rows X that a weight meets: what one-shot pruning solves with.

    The state has `products`, (inputs, inputs) in float32, and `rows`, their number.
    """

    def init(site):
        return {"products": _zero(site.inputs, site.inputs), "rows": _no_rows()}

    def update(state, met, site):
        del site
        x = widened(met.rows())
        products = state["products"] + x.T @ x
        return {"products": products.astype(jnp.float32), "rows": state["rows"] + x.shape[0]}

    return Reducer(init, update)


def square_norms() -> Reducer:
    """The squared norm of every column of X, the diagonal of `gram`: what Wanda scores by.

    The state has `squares`, (inputs,) in float32, and `rows`.
    """

    def init(site):
        return {"squares": _zero(site.inputs), "rows": _no_rows()}

    def update(state, met, site):
        del site
        x = widened(met.rows())
        squares = state["squares"] + jnp.sum(x * x, axis=0)
        return {"squares": squares.astype(jnp.float32), "rows": state["rows"] + x.shape[0]}

    return Reducer(init, update)


def largest() -> Reducer:
    """max |x| over all that a weight meets, a float32: the range that INT8 has to hold."""

    def update(state, met, site):
        del site
        found = jnp.max(jnp.abs(widened(met.array)), initial=0)
        return jnp.maximum(state, found.astype(jnp.float32))

    return Reducer(lambda site: _zero(), update)


def zeros() -> Reducer:
    """How many numbers were zero, and of how many: the sparsity of activations.

    The state has `zeros` and `size`, float32: a count beyond 2²⁴ is rounded.
    """

    def update(state, met, site):
        del site
        count = jnp.sum(met.array == 0, dtype=jnp.float32)
        return {"zeros": state["zeros"] + count, "size": state["size"] + met.array.size}

    return Reducer(lambda site: {"zeros": _zero(), "size": _zero()}, update)
