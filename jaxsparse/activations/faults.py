"""What cannot be known before the numbers are: raised at once, or flagged and raised on request.

Outside `jax.jit` a condition on values raises where it fails. Inside, nothing can raise, so
what depends on the failed condition becomes NaN, a flag says so, and a call through `checked`
raises with the same message.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.experimental import checkify

# Part of the key of every compiled program. Outside of `checked` no check is traced at all:
# `jax.export` cannot write one into a file.
_CHECKING = jax.make_user_context(False)


def require(holds: Any, message: str, **values: Any) -> None:
    """Raises unless a condition holds, or leaves that to `checked` where it is traced.

    Args:
      holds: one truth value.
      message: with fields for `values`, as of `str.format`.
      values: numbers that are quoted.

    Raises:
      ValueError: it does not hold, and is no tracer.
    """
    if isinstance(holds, Tracer):
        if _CHECKING.value:
            quoted: Any = {k: jnp.asarray(v) for k, v in values.items()}
            checkify.check(holds, message, **quoted)
    elif not holds:
        raise ValueError(message.format(**{k: np.asarray(v) for k, v in values.items()}))


def checked(function: Callable) -> Callable:
    """A jitted function that raises where the plain one flags.

    Args:
      function: of arrays and pytrees; everything it builds on the way is checked, also what
        it does not return.

    Returns:
      The function; its errors are ValueErrors which say what would have been enough.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxsparse import activations as act
      >>> x = act.sparse_tensor(jnp.array([[0, 1, 1], [0, 4, 4]]), jnp.ones((2, 3)))
      >>> def halve(x):
      ...     return act.kernel_map(x, 2, stride=2, outputs="floor", capacity=1).outputs
      >>> bool(jax.jit(halve)(x).ok)
      False
      >>> act.checked(halve)(x)
      Traceback (most recent call last):
        ...
      ValueError: 2 sites do not fit a capacity of 1; pass capacity=2 or more.
    """
    functional = jax.jit(checkify.checkify(function, errors=checkify.user_checks))

    def call(*args, **kwargs):
        with _CHECKING(True):
            error, result = functional(*args, **kwargs)
        if (message := error.get()) is not None:
            raise ValueError(message.removesuffix(" (`check` failed)"))
        return result

    return call


def poison(values: jax.Array, ok: Any) -> jax.Array:
    """The values, or NaN where something failed on the way to them and they can hold it."""
    if not jnp.issubdtype(values.dtype, jnp.inexact) or not isinstance(ok, Tracer):
        return values
    return jnp.where(ok, values, jnp.nan)


def is_known(*arrays: Any) -> bool:
    """Whether all of these have values already."""
    return not any(isinstance(array, Tracer) for array in arrays)
