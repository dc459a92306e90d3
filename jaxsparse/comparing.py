"""Whether a model does what another one did: run both, and compare what comes out."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import DTypeLike

TOLERANCE = 1e-4  # relative to the largest output; sums may run in another order


def compare(
    new: Callable[..., Any],
    reference: Callable[..., Any],
    inputs: Sequence[Any],
    what: str,
    advice: tuple[str, str],
    dtypes: Iterable[DTypeLike] = (),
    other: str = "the masked one",
) -> None:
    """Raises ValueError unless two functions give the same, up to rounding.

    Args:
      new, reference: called as function(*inputs).
      inputs: with `jax.ShapeDtypeStruct` among them only shapes are compared.
      what: the subject of the error.
      advice: the end of the error where `new` does not run, and where it differs: what may be
        the cause, and what would work.
      dtypes: what the functions compute in.
      other: what `reference` is, in the error.
    """
    tolerance = max([TOLERANCE, *(8 * float(jnp.finfo(dtype).eps) for dtype in dtypes)])
    abstract = any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(inputs))

    def run(function):
        return jax.eval_shape(function, *inputs) if abstract else function(*inputs)

    expected = run(reference)
    try:
        actual = run(new)
    except (TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{what} does not run: {advice[0]} ({error})") from error
    shapes = [jax.tree.map(jnp.shape, outputs) for outputs in (actual, expected)]
    if shapes[0] != shapes[1]:
        raise ValueError(f"{what} returns shapes {shapes[0]}, {other} {shapes[1]}")
    if abstract:
        return
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        if jnp.issubdtype(jnp.result_type(b), jnp.inexact):
            _compare(jnp.asarray(a), jnp.asarray(b), (what, other), advice[1], tolerance)


def pure(model: nnx.Module) -> Callable[..., Any]:
    """The model as a function that leaves its state, running means and keys, as it is."""
    graph, state = nnx.split(model)

    def call_pure(*inputs):
        leaves, tree = jax.tree.flatten(inputs)
        arrays = {i: leaf for i, leaf in enumerate(leaves) if hasattr(leaf, "dtype")}

        @jax.jit
        def call(state, arrays):
            given = [arrays.get(i, leaf) for i, leaf in enumerate(leaves)]
            return nnx.merge(graph, state)(*tree.unflatten(given))

        return call(state, arrays)

    return call_pure


def _compare(actual, expected, names, cure, tolerance):
    wide = jnp.promote_types(expected.dtype, jnp.float32)
    a, b = np.asarray(actual.astype(wide)), np.asarray(expected.astype(wide))
    differ = (a != b) & ~(np.isnan(a) & np.isnan(b))
    if not differ.any():
        return
    error = float(np.max(np.abs(a - b)[differ]))
    scale = float(np.max(np.abs(b), where=np.isfinite(b), initial=0))
    if not error <= tolerance * scale:
        raise ValueError(
            f"{names[0]} computes something else than {names[1]}: outputs differ by {error:.3g} of "
            f"{scale:.3g}; {cure}"
        )
