"""Where masks meet weights: exact zeros in what the model sees and in what is stored."""

import warnings
from collections.abc import Iterable, Mapping

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Int, Shaped

from jaxsparse.packed import is_packed
from jaxsparse.rules import describe
from jaxsparse.trees import Tree, leaves_by_path, near_misses, replace_by_path

NEED_PARAMS = "{name} needs the parameters: call update(grads, state, params)"

# Leaves (path and shape) whose masks a forward pass has seen in this process. It
# decides whether `prune` warns, and nothing else.
_seen: set[tuple[str, tuple[int, ...]]] = set()


def next_count(count: Int[Array, ""]) -> Int[Array, ""]:
    """count + 1, saturating at the largest integer."""
    return jnp.asarray(optax.safe_increment(count))


def mask_params(params: Tree, masks: Tree) -> Tree:
    """Returns the parameters with exact zeros where a mask is False: what the model sees.

    where(mask, w, 0), so a masked NaN or infinity is zero too, which no update can
    make of it. Gradients with respect to *its result* are dense, which is what
    `prune` wants; `masked(loss, masks)` takes them for you.

    Args:
      params: any Flax or plain tree.
      masks: `{"slash/path": mask}` or a tree like `params` with None where dense.

    Raises:
      KeyError: if a mask names a leaf that is not there.
      ValueError: if shapes differ, or the leaf is no array of numbers.
    """
    given = leaves_by_path(masks)
    note_masked((path, jnp.shape(mask)) for path, mask in given.items())
    return mask_tree(params, given)


def mask_tree(tree: Tree, masks: Mapping[str, Bool[Array, "..."]]) -> Tree:
    """`mask_params` of gradients or of anything else that no forward pass sees."""
    pairs = pair_masks(tree, masks)
    return replace_by_path(tree, {p: select(mask, leaf, 0) for p, (mask, leaf) in pairs.items()})


def pair_masks(
    params: Tree, masks: Mapping[str, Bool[Array, "..."]]
) -> dict[str, tuple[Bool[Array, "..."], Array]]:
    """Returns {path: (mask, leaf)} for every mask; what does not fit is an error that says so."""
    leaves = leaves_by_path(params)
    pairs = {}
    for path, mask in masks.items():
        if path not in leaves:
            if is_packed(leaf := leaves_by_path(params, is_packed).get(path)):
                raise ValueError(
                    f"mask for {path!r}, which is packed, {leaf!r}; js.unpack_params(params) "
                    "would work"
                )
            raise KeyError(f"mask for {path!r}, but no such leaf; {near_misses(path, leaves)}")
        leaf = describe(leaves[path])
        if isinstance(leaf, str):
            raise ValueError(f"mask for {path!r}, {leaf}: only arrays of numbers are masked")
        if jnp.shape(mask) != leaf.shape:
            raise ValueError(
                f"the mask of {path!r} has shape {jnp.shape(mask)}, the leaf {leaf.shape}"
            )
        if jnp.issubdtype(jnp.result_type(mask), jnp.inexact):
            raise ValueError(
                f"the mask of {path!r} is of {jnp.result_type(mask)}, like a weight; bool would "
                "work, and in mask_params(params, masks) the parameters come first"
            )
        pairs[path] = jnp.asarray(mask, bool), jnp.asarray(leaves[path])
    return pairs


def apply_masks() -> optax.GradientTransformationExtraArgs:
    """Last in a chain: updates that leave exact zeros where a mask is False.

    u <- where(mask, u, -w), in the weight's dtype. `update` takes the keyword
    `masks=`, the `masks(opt_state)` of the state passed in; so the stored weights
    follow the masks that were in force during the step. Finish with
    `mask_params`, which alone makes zeros of masked NaN and infinities.

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
    return jnp.where(sharded_as(mask, kept), kept, jnp.asarray(masked, kept.dtype))


def sharded_as(array: Array, like: Array) -> Array:
    """The array in the explicit sharding of another one of its shape; automatic ones follow."""
    sharding = jax.typeof(like).sharding
    if jax.typeof(array).sharding != sharding and sharding.mesh.are_all_axes_explicit:
        return jax.sharding.reshard(array, sharding)
    return array


def zero_masked(updates: Tree, params: Tree, masks: Mapping[str, Bool[Array, "..."]]) -> Tree:
    """Returns updates u that leave w + u at exactly +0 where a mask is False and w is finite.

    u <- where(mask, u, -w), in the weight's dtype; adding it turns -0 into +0, too.
    """
    weights, changes = pair_masks(params, masks), pair_masks(updates, masks)
    new = {
        path: select(mask, changes[path][1].astype(weight.dtype), -weight)
        for path, (mask, weight) in weights.items()
    }
    return replace_by_path(updates, new)


def note_masked(leaves: Iterable[tuple[str, tuple[int, ...]]]) -> None:
    """Notes that a forward pass sees these leaves masked."""
    _seen.update(leaves)


def warn_unless_masked(leaves: Iterable[tuple[str, tuple[int, ...]]]) -> None:
    """Warns, once for each leaf, if no forward pass has seen it masked."""
    unseen = sorted(set(leaves) - _seen)
    if not unseen:
        return
    _seen.update(unseen)
    warnings.warn(
        f"prune: no forward pass has seen {unseen[0][0]!r} masked, so the model trains dense and "
        "will be cut untrained. Differentiate js.masked(loss, opt_state) instead of loss, or loss "
        "at js.mask_params(params, js.masks(opt_state)); js.pruned(optimizer, pruner) needs "
        "neither, but takes no straight_through() and no importance_threshold()",
        stacklevel=3,
    )
