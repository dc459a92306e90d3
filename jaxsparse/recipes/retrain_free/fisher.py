"""How much a loss changes with each head and neuron: gradients of their masks."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from jaxsparse.graph import StructuredGroup
from jaxsparse.recipes.retrain_free.readers import contribution, readers
from jaxsparse.trees import Tree, apart, leaves_by_path, replace_by_path, together

Gradients = Mapping[str, Float[np.ndarray, "batches units"]]


def unit_gradients(
    fn: Callable[..., Any],
    params: Tree,
    batches: Iterable[tuple[Any, Any]],
    loss: Callable[[Any, Any], Any],
    groups: Sequence[StructuredGroup],
) -> dict[str, Float[np.ndarray, "batches units"]]:
    """The gradient of each batch's loss by a factor on every unit's contribution, at 1.

    dL/dm_u is the sum of dL/dW W over the entries by which weights read unit u. That is exact:
    a product is linear in its weight, so the factor may stand before the weight as well as
    after it. The Fisher information of u is the sum of its squares over the batches.

    Args:
      fn: called as fn(params, *inputs), as it runs in the end: in evaluation mode.
      params: its weights, in any floating dtype; sums are in float32 or better.
      batches: pairs (inputs, targets), inputs an array or a tuple of arrays.
      loss: called as loss(outputs, targets); one number, the mean over the batch.
      groups: those of `js.graph.structure`.

    Returns:
      By name of a group, float64.

    Raises:
      ValueError: no batches, a loss that is not one number, readers that are no floats, and a
        gradient that is not finite; gradients that are all 0.

    Example:
      >>> import jaxsparse as js
      >>> def mlp(params, x):
      ...     return x @ params["up"] @ params["down"]
      >>> params = {"up": jnp.eye(2), "down": jnp.array([[1.0], [3.0]])}
      >>> groups = js.graph.structure(mlp, params, jnp.ones((1, 2))).groups
      >>> batch = (jnp.array([[1.0, 2.0]]), None)
      >>> unit_gradients(mlp, params, [batch], lambda y, _: y.sum(), groups)["up, down"].tolist()
      [[1.0, 6.0]]
    """
    leaves = leaves_by_path(params)
    paths = list(dict.fromkeys(m.path for group in groups for m in readers(group)))
    for path in paths:
        if not jnp.issubdtype(jnp.result_type(leaves[path]), jnp.floating):
            raise ValueError(
                f"retrain_free: {path!r} of shape {jnp.shape(leaves[path])} reads units and is "
                f"{jnp.result_type(leaves[path])}, which has no gradient; floating weights, or "
                "groups= that leaves its group out, would work"
            )

    def gradients(numbers, rest, tree):
        params, inputs, targets = together(numbers, rest, tree)
        weights = {path: leaf for path, leaf in leaves_by_path(params).items() if path in paths}

        def of(weights):
            return loss(fn(replace_by_path(params, weights), *inputs), targets)

        shape = jax.eval_shape(of, weights)
        one = isinstance(shape, jax.ShapeDtypeStruct) and shape.shape == ()
        if not one or not jnp.issubdtype(jnp.result_type(shape), jnp.floating):
            raise ValueError(
                f"retrain_free: the loss of a batch is {shape}; one floating number, the mean over "
                "the batch, would work"
            )
        slopes = jax.grad(of)(weights)
        return {group.name: contribution(group, weights, slopes) for group in groups}

    step = jax.jit(gradients, static_argnums=(1, 2))
    rows: dict[str, list[np.ndarray]] = {group.name: [] for group in groups}
    count = 0
    for count, (inputs, targets) in enumerate(batches, 1):
        found = step(*apart((params, as_tuple(inputs), targets)))
        for name, row in found.items():
            rows[name].append(np.asarray(row, np.float64))
            if not np.isfinite(rows[name][-1]).all():
                units = np.flatnonzero(~np.isfinite(rows[name][-1])).tolist()
                raise ValueError(
                    f"retrain_free: the gradient of units {units[:8]} of {name!r} is not finite in "
                    f"batch {count - 1}; look at its inputs and at the loss"
                )
    if not count:
        raise ValueError("retrain_free: no batches; one pair (inputs, targets) would work")
    if not any(np.any(row) for found in rows.values() for row in found):
        raise ValueError(
            f"retrain_free: all gradients of {list(rows)[:8]} are 0 in all {count} batches, so "
            "that no unit is worth more than another; a loss that depends on the outputs, and does "
            "not vanish in its dtype, would work"
        )
    return {name: np.stack(found) for name, found in rows.items()}


def as_tuple(inputs: Any) -> tuple[Any, ...]:
    """The inputs of a batch as `fn` takes them after its parameters."""
    return inputs if isinstance(inputs, tuple) else (inputs,)
