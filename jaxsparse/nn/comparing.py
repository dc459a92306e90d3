"""Whether a model does what another one did: run both, and compare what comes out."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import DTypeLike

TOLERANCE = 1e-4  # relative to the largest output; sums may run in another order


def compare(
    new: Callable[..., Any],
    reference: Callable[..., Any],
    inputs: Sequence[Any],
    what: str,
    dtypes: Iterable[DTypeLike] = (),
) -> None:
    """Raises ValueError unless two functions give the same, up to rounding.

    Args:
      new, reference: called as function(*inputs).
      inputs: with `jax.ShapeDtypeStruct` among them only shapes are compared.
      what: the subject of the error.
      dtypes: what the functions compute in.
    """
    tolerance = max(TOLERANCE, *(8 * float(jnp.finfo(dtype).eps) for dtype in dtypes))
    abstract = any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(inputs))

    def run(function):
        return jax.eval_shape(function, *inputs) if abstract else function(*inputs)

    expected = run(reference)
    try:
        actual = run(new)
    except (TypeError, ValueError, AttributeError) as error:
        raise ValueError(
            f"{what} does not run: the model's own code uses the kernel otherwise than by calling "
            f"the layer; pack_params and sparsify would work ({error})"
        ) from error
    shapes = [jax.tree.map(jnp.shape, outputs) for outputs in (actual, expected)]
    if shapes[0] != shapes[1]:
        raise ValueError(f"{what} returns shapes {shapes[0]}, the masked one {shapes[1]}")
    if abstract:
        return
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        if jnp.issubdtype(jnp.result_type(b), jnp.inexact):
            _compare(jnp.asarray(a), jnp.asarray(b), what, tolerance)


def _compare(actual, expected, what, tolerance):
    wide = jnp.promote_types(expected.dtype, jnp.float32)
    a, b = np.asarray(actual.astype(wide)), np.asarray(expected.astype(wide))
    differ = (a != b) & ~(np.isnan(a) & np.isnan(b))
    if not differ.any():
        return
    error = float(np.max(np.abs(a - b)[differ]))
    scale = float(np.max(np.abs(b), where=np.isfinite(b), initial=0))
    if not error <= tolerance * scale:
        raise ValueError(
            f"{what} computes something else than the masked one: outputs differ by {error:.3g} of "
            f"{scale:.3g}; pack_params and sparsify would work"
        )
