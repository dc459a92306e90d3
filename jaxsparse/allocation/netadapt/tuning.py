"""`tuner`: trains a masked network a few steps with any optimizer of optax."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxsparse.pruning.masking import mask_params
from jaxsparse.trees import Tree, apart, floats_of, leaves_by_path, replace_by_path, together

Tune = Callable[[Tree, Mapping[str, Any], range], Tree]


def tuner(
    loss: Callable[..., Any],
    batches: Sequence[Any],
    optimizer: optax.GradientTransformation,
    *,
    paths: str = ".*",
) -> Tune:
    """A function that trains the weights that masks keep, for `netadapt(tune=...)`.

    The network runs masked, at its whole size: one compilation does for all widths. Weights and
    the optimizer, which begins anew with every call, are in float32 at least, and go back to the
    dtype of the leaf.

    Args:
      loss: called as loss(params, *batch), with masked parameters: one number.
      batches: tuples of arrays, or single ones; step t trains on number t modulo how many.
      optimizer: any; a schedule counts from the first step of a call.
      paths: regular expression of the leaves to train, of floats. `r"params/.*"` leaves
        statistics of norms as they are.

    Returns:
      tune(params, masks, steps), `steps` a range of numbers, which returns the parameters, +0
      where masks are.

    Raises:
      ValueError: no batches; and, when called, an expression that names no leaf of floats.
      TypeError: a loss that is no function.

    Example:
      >>> params = {"w": jnp.array([1.0, 1.0])}
      >>> loss = lambda params, x: jnp.sum((params["w"] - x) ** 2)
      >>> tune = tuner(loss, [jnp.array(3.0)], optax.sgd(0.25))
      >>> tune(params, {"w": jnp.array([True, False])}, range(2))["w"].tolist()
      [2.5, 0.0]
    """
    if not callable(loss):
        raise TypeError(f"tuner: {type(loss).__name__} is no function; the loss comes first")
    if not len(batches):
        raise ValueError("tuner: no batches; one tuple of arrays would work")

    def step(weights, state, masks, numbers, batch, form, dtypes):
        def masked_loss(weights):
            cast = {path: weights[path].astype(dtype) for path, dtype in dtypes}
            return loss(replace_by_path(together(numbers, *form), cast), *batch)

        slopes = mask_params(jax.grad(masked_loss)(mask_params(weights, masks)), masks)
        updates, state = optimizer.update(slopes, state, weights)
        return mask_params(optax.apply_updates(weights, updates), masks), state

    jitted = jax.jit(step, static_argnames=("form", "dtypes"))

    def tune(params: Tree, masks: Mapping[str, Any], steps: range) -> Tree:
        params = mask_params(params, masks)
        leaves = leaves_by_path(params)
        trained = floats_of(leaves, paths, "tuner")
        dtypes = tuple((path, leaf.dtype) for path, leaf in trained.items())
        kept = {path: masks[path] for path in trained if path in masks}
        wide = {
            p: leaf.astype(jnp.promote_types(leaf.dtype, "float32")) for p, leaf in trained.items()
        }
        numbers, *form = apart(params)
        weights, state = wide, optimizer.init(wide)
        for number in steps:
            batch = batches[number % len(batches)]
            batch = batch if isinstance(batch, tuple) else (batch,)
            weights, state = jitted(weights, state, kept, numbers, batch, tuple(form), dtypes)
        return replace_by_path(params, {path: weights[path].astype(d) for path, d in dtypes})

    return tune
