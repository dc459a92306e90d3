"""`masked`: the loss of the masked weights with one call, for nnx, linen and plain trees."""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Shaped

from jaxsparse.masking import note_masked, pair_masks, select
from jaxsparse.pruning import has_masks, masks
from jaxsparse.trees import Tree, leaves_by_path, replace_by_path


def masked(loss: Callable[..., Any], masks_or_state: Tree) -> Callable[..., Any]:
    """Returns `loss` of the masked weights, with the gradients that pruning wants.

    `masked(loss, m)(w, ...)` is `loss(where(m, w, 0), ...)`, and its derivative is
    that of `loss` there, dense: masked weights have gradients too, by which they
    can grow back or be scored. `jax.grad` through `mask_params` would be zero at
    them. It is differentiated, jitted and called as `loss` is.

    The first argument is what holds the weights: an `nnx.Module` (or a tree of
    them), linen's parameters, or any other tree, with the paths that the optimizer
    was initialised with. Everything that `loss` changes in a module, such as the
    statistics of a BatchNorm, stays changed; the pruned weights keep their values.

    Args:
      loss: any function, with or without auxiliary outputs.
      masks_or_state: `{"slash/path": mask}`, a tree of masks, or whatever
        `js.masks` reads: an optimizer's state, an `nnx.Optimizer`, a `TrainState`.

    Raises:
      KeyError: when called, if a mask names a leaf that is not there.
      ValueError: when called, if shapes differ.

    >>> loss = lambda params: jnp.sum((params["w"] - 3) ** 2)
    >>> seen = masked(loss, {"w": jnp.array([True, False])})
    >>> params = {"w": jnp.array([1.0, 1.0])}
    >>> float(seen(params)), jax.grad(seen)(params)["w"].tolist()
    (13.0, [-4.0, -6.0])

    In a training step of `flax.nnx`::

        grads = nnx.grad(js.masked(loss, optimizer))(model, x, y)
        optimizer.update(model, grads)
    """
    # Expanded here and not in the call: that may be inside another trace.
    found = masks(masks_or_state) if has_masks(masks_or_state) else leaves_by_path(masks_or_state)

    @functools.wraps(loss)
    def seen(weights, *args, **kwargs):
        note_masked((path, jnp.shape(mask)) for path, mask in found.items())
        if _has_modules(weights):
            with _masked_variables(weights, found):
                return loss(weights, *args, **kwargs)
        pairs = pair_masks(weights, found)
        new = {path: _pass_through(leaf, mask) for path, (mask, leaf) in pairs.items()}
        return loss(replace_by_path(weights, new), *args, **kwargs)

    return seen


@jax.custom_jvp
def _pass_through(weight: Shaped[Array, "..."], mask: Bool[Array, "..."]) -> Shaped[Array, "..."]:
    """where(mask, w, 0), whose derivative is 1 everywhere."""
    return select(mask, weight, 0)


@_pass_through.defjvp
def _pass_through_jvp(primals, tangents):
    return _pass_through(*primals), tangents[0]


def _has_modules(tree: Tree) -> bool:
    leaves = jax.tree.leaves(tree, is_leaf=lambda node: isinstance(node, nnx.Module))
    return any(isinstance(node, nnx.Module) for node in leaves)


@contextlib.contextmanager
def _masked_variables(modules: Tree, found: dict[str, Bool[Array, "..."]]) -> Iterator[None]:
    """Masks the modules' own variables meanwhile, so that other changes to them survive."""
    variables = {
        "/".join(map(str, path)): node
        for path, node in nnx.iter_graph(modules)
        if isinstance(node, nnx.Variable)
    }
    stored = {path: node.get_raw_value() for path, node in variables.items()}
    pairs = pair_masks(stored, found)
    try:
        for path, (mask, leaf) in pairs.items():
            variables[path].set_raw_value(_pass_through(leaf, mask))
        yield
    finally:
        for path in pairs:
            variables[path].set_raw_value(stored[path])
