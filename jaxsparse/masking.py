"""Where masks meet weights: exact zeros in what the model sees and in what is stored."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Int, Shaped

from jaxsparse.trees import Tree, leaves_by_path, near_misses, replace_by_path

NEED_PARAMS = "{name} needs the parameters: call update(grads, state, params)"


def next_count(count: Int[Array, ""]) -> Int[Array, ""]:
    """count + 1, saturating at the largest integer."""
    return jnp.asarray(optax.safe_increment(count))


def mask_params(params: Tree, masks: Tree) -> Tree:
    """Returns the parameters with exact zeros where a mask is False: what the model sees.

    where(mask, w, 0), so a masked NaN or infinity is zero too. Gradients with
    respect to *its result* are dense, which is what `prune` wants.

    Args:
      params: any Flax or plain tree.
      masks: `{"slash/path": mask}` or a tree like `params` with None where dense.

    Raises:
      KeyError: if a mask names a leaf that is not there.
      ValueError: if shapes differ.
    """
    leaves = leaves_by_path(params)
    masked = {}
    for path, mask in leaves_by_path(masks).items():
        if path not in leaves:
            raise KeyError(f"mask for {path!r}, but no such leaf; {near_misses(path, leaves)}")
        leaf = leaves[path]
        if mask.shape != leaf.shape:
            raise ValueError(f"the mask of {path!r} has shape {mask.shape}, the leaf {leaf.shape}")
        masked[path] = select(mask, leaf, 0)
    return replace_by_path(params, masked)


def apply_masks() -> optax.GradientTransformationExtraArgs:
    """Last in a chain: updates that leave exact zeros where a mask is False.

    u <- where(mask, u, -w), in the weight's dtype. `update` takes the keyword
    `masks=`, the `masks(opt_state)` of the state passed in; so the stored weights
    follow the masks that were in force during the step. Finish with
    `mask_params`.

    Raises:
      ValueError: at update, without parameters or masks.
    """

    def update(updates, state, params=None, *, masks=None, **extra):
        del extra
        if params is None:
            raise ValueError(NEED_PARAMS.format(name="apply_masks"))
        if masks is None:
            raise ValueError(
                "apply_masks needs the masks in force: "
                "update(grads, state, params, masks=masks(state)) would work"
            )
        return zero_masked(updates, params, leaves_by_path(masks)), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


def select(
    mask: Bool[Array, "..."], kept: Shaped[Array, "..."], masked: Shaped[Array, "..."] | float
) -> Shaped[Array, "..."]:
    """where(mask, kept, masked) in the dtype and sharding of `kept`."""
    sharding = jax.typeof(kept).sharding
    if jax.typeof(mask).sharding != sharding and sharding.mesh.are_all_axes_explicit:
        mask = jax.sharding.reshard(mask, sharding)
    return jnp.where(mask, kept, jnp.asarray(masked, kept.dtype))


def zero_masked(updates: Tree, params: Tree, masks: Mapping[str, Bool[Array, "..."]]) -> Tree:
    """Returns updates u that leave w + u at exactly +0 where a mask is False.

    u <- where(mask, u, -w), in the weight's dtype; adding it turns -0 into +0, too.
    """
    weights, changes = leaves_by_path(params), leaves_by_path(updates)
    new = {
        path: select(mask, changes[path].astype(weights[path].dtype), -weights[path])
        for path, mask in masks.items()
    }
    return replace_by_path(updates, new)
