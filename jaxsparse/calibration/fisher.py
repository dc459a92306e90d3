"""The diagonal of the Fisher information: how much a loss feels each weight."""

from collections.abc import Callable, Iterable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxsparse.calibration.checks import SMALLEST
from jaxsparse.trees import (
    Tree,
    apart,
    floats_of,
    leaves_by_path,
    replace_by_path,
    together,
)


def fisher(
    loss: Callable[..., Any],
    params: Tree,
    batches: Iterable[Any],
    *,
    paths: str = ".*",
    per: Literal["batch", "sample"] = "batch",
) -> dict[str, Float[Array, "..."]]:
    """The mean over batches, or over samples, of the squared gradient of a loss.

        F_w = E[(dL/dw)²]

    Where L is the negative log-likelihood of a model this is the diagonal of its empirical Fisher
    information, which stands in for that of the Hessian: Theis et al. 2018, arXiv 1801.05787.
    Gradients of a batch's mean loss average before they are squared, which is quick and is what
    Kwon et al. 2022 take; those of single samples do not, and cost one backward pass each.

    Args:
      loss: called as loss(params, *batch), a number.
      params: the weights.
      batches: tuples of arrays, or arrays; gone through once, one at a time.
      paths: regular expression of the weights to look at, those of floats.
      per: "batch", or "sample": every slice along the first axis of all arrays of a batch, as a
        batch of one.

    Returns:
      By path, float32 in the shape of the weight: see `optimal_brain_damage`.

    Raises:
      ValueError: an expression that names no weight of floats; batches that are none; samples
        in no number or in several; a loss that is no number; gradients of a weight that are not
        finite, or too small for squares in float32.

    Example:
      >>> params = {"w": jnp.array([2.0, 1.0])}
      >>> def loss(params, x):
      ...     return jnp.mean((x @ params["w"]) ** 2) / 2
      >>> x = jnp.array([[1.0, 0.0], [0.0, 1.0]])
      >>> fisher(loss, params, [x])["w"].tolist()  # of the mean loss
      [1.0, 0.25]
      >>> fisher(loss, params, [x], per="sample")["w"].tolist()
      [2.0, 0.5]
    """
    if per not in ("batch", "sample"):
        raise ValueError(f"fisher: per={per!r}: 'batch' or 'sample' would work")
    if hasattr(batches, "shape"):
        raise TypeError("fisher: batches is one array; [batch] would work")
    leaves = leaves_by_path(params)
    weights = floats_of(leaves, paths, "fisher")

    # What is not looked at is an argument, too: as a constant it would be compiled in.
    others, rest, tree = apart({path: leaf for path, leaf in leaves.items() if path not in weights})

    def slopes(weights, others, batch):
        held = together(others, rest, tree)
        value = lambda weights: loss(replace_by_path(params, held | weights), *batch)  # noqa: E731
        shape = jax.eval_shape(value, weights)
        if getattr(shape, "shape", None) != () or not jnp.issubdtype(shape.dtype, jnp.floating):
            raise ValueError(f"fisher: the loss is {shape}; one real number would work")
        return {path: g.astype(jnp.float32) for path, g in jax.grad(value)(weights).items()}

    def added(total, found):
        return {
            path: (squares + jnp.square(g), jnp.maximum(largest, jnp.max(jnp.abs(g), initial=0)))
            for path, g in found.items()
            for squares, largest in [total[path]]
        }

    @jax.jit
    def add(total, weights, others, batch):
        if per == "batch":
            return added(total, slopes(weights, others, batch))

        def one(total, sample):
            alone = jax.tree.map(lambda a: a[None], sample)
            return added(total, slopes(weights, others, alone)), None

        return jax.lax.scan(one, total, batch)[0]  # a sample at a time: no stack of gradients

    total = {
        path: (jnp.zeros(weight.shape, jnp.float32), jnp.zeros((), jnp.float32))
        for path, weight in weights.items()
    }
    number = 0
    for batch in batches:
        batch = batch if isinstance(batch, tuple) else (batch,)
        number += 1 if per == "batch" else _samples(batch)
        total = add(total, weights, others, batch)
    if not number:
        raise ValueError("fisher: no batches; one tuple of arrays would work")
    found = {path: squares / number for path, (squares, _) in total.items()}
    for path, array in found.items():
        if 0 < (largest := float(total[path][1])) < SMALLEST:
            raise ValueError(
                f"fisher: gradients of {path!r} of shape {array.shape} are {largest:.3g} at most, "
                "and float32 does not hold their squares; the loss scaled up would work"
            )
        if not jnp.isfinite(array).all():
            raise ValueError(
                f"fisher: squared gradients of {path!r} of shape {array.shape} are not finite; "
                "look at the batches and at the weights, or scale the loss down"
            )
    return found


def _samples(batch: tuple[Any, ...]) -> int:
    shapes = [jnp.shape(array) for array in jax.tree.leaves(batch)]
    numbers = {shape[0] if shape else None for shape in shapes}
    if len(numbers) != 1 or None in numbers or 0 in numbers:
        raise ValueError(
            f"fisher: arrays of shapes {shapes} have no one number of samples along their first "
            "axis; per='batch' would work"
        )
    return shapes[0][0]
