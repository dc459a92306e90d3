"""Whether a model does what another one did: run both, and compare what comes out."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import DTypeLike

TOLERANCE = 1e-4  # sums may run in another order


def compare(
    new: Callable[..., Any],
    reference: Callable[..., Any],
    inputs: Sequence[Any],
    what: str,
    advice: tuple[str, str],
    dtypes: Iterable[DTypeLike] = (),
    other: str = "the masked one",
) -> None:
    """Raises ValueError unless two functions give the same, floats up to rounding.

    |a - b| ≤ tolerance * max(|b|, scale) for every a of `new` and b of `reference`, where the
    scale is the median of the finite sizes |b| > 0 of an output, each taken once: a mask's
    value, however large, hides nothing. Integers, truths and dtypes are to be equal.

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
        kinds = [x.dtype if hasattr(x, "dtype") else jnp.result_type(x) for x in (a, b)]
        if kinds[0] != kinds[1]:
            raise ValueError(f"{what} returns {kinds[0]}, {other} {kinds[1]}; {advice[1]}")
        if jnp.issubdtype(kinds[1], jax.dtypes.prng_key):
            a, b = map(jax.random.key_data, (a, b))
        found = _difference(jnp.asarray(a), jnp.asarray(b), tolerance)
        if found:
            raise ValueError(f"{what} computes something else than {other}: {found}; {advice[1]}")


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


def _difference(actual, expected, tolerance):
    """How outputs of one dtype differ; nothing if they do not."""
    if not jnp.issubdtype(expected.dtype, jnp.inexact):
        differ = np.asarray(actual != expected)
        if not differ.any():
            return ""
        where = tuple(map(int, np.argwhere(differ)[0]))
        return (
            f"{differ.sum()} of {differ.size} outputs of {expected.dtype} differ, the one at "
            f"{list(where)} is {actual[where]}, not {expected[where]}"
        )
    wide = jnp.promote_types(expected.dtype, jnp.float32)
    a, b = np.asarray(actual.astype(wide)), np.asarray(expected.astype(wide))
    differ = (a != b) & ~(np.isnan(a) & np.isnan(b))
    if not differ.any():
        return ""
    size = np.where(np.isfinite(b), np.abs(b), 0)
    scale = float(np.median(np.unique(size[size > 0]))) if size.any() else 0.0
    with np.errstate(over="ignore", invalid="ignore"):  # of infinities, which are equal or wrong
        error = np.abs(a - b)
    wrong = differ & ~(error <= tolerance * np.maximum(size, scale))
    if not wrong.any():
        return ""
    largest = float(np.max(error[wrong]))
    return f"outputs differ by {largest:.3g} where {scale:.3g} is their usual size"
