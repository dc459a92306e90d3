"""Where masks meet weights: `masks`, `apply_masks` and `pruned`."""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax import lax
from jaxtyping import Array, Bool

from jaxsparse.pruning import NEED_PARAMS, PruneState
from jaxsparse.trees import Tree, leaves_by_path, replace_by_path

FIRST_MOMENTS = ("mu", "m", "trace", "momentum", "ema")


class PrunedState(NamedTuple):
    """State of `pruned`: the pruner's and the optimizer's."""

    pruner: Any
    optimizer: optax.OptState


def masks(opt_state: Tree, params: Tree | None = None) -> Tree:
    """Returns the masks in force, expanded to the shapes of the weights.

    Args:
      opt_state: any optax state with one or more PruneStates in it, however deep;
        an `nnx.Optimizer`'s `opt_state` too.
      params: give them to get a tree like them, None where dense.

    Returns:
      `{"slash/path": bool mask}`, True is kept, or the tree.

    Raises:
      ValueError: without a PruneState, and on a leaf in two of them.
    """
    found = {}
    states = [s for s in jax.tree.leaves(opt_state, is_leaf=_is_prune_state) if _is_prune_state(s)]
    if not states:
        raise ValueError(
            "no PruneState in the optimizer's state; a chain that begins with prune(...), or "
            "pruned(optimizer, prune(...)), has one"
        )
    for state in states:
        for path, mask in nnx.as_pure(state.masks).items():
            if path in found:
                raise ValueError(f"leaf {path!r} is pruned twice: it is in two PruneStates")
            found[path] = mask.expand()
    if params is None:
        return found
    everything = dict.fromkeys(leaves_by_path(params))
    return replace_by_path(params, everything | found)


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
        return _zeroing(updates, params, leaves_by_path(masks)), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


def pruned(
    optimizer: optax.GradientTransformation,
    pruner: optax.GradientTransformation,
    *,
    reset: Literal["first", "all", "none"] = "first",
    replace_update: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """The reference form: after every applied step, weights are +0 under `masks(new_state)`.

    Gradients go to the pruner, what it passes on to the optimizer, and the
    optimizer's updates become where(new mask, u, -w). It needs no `masks=`. Wrap it
    outermost: `pruned(schedule_free(...), pruner)`.

    Args:
      optimizer: any optax transformation, regularizers included.
      pruner: a `prune(...)`, or partitions and wraps of it.
      reset: what is zeroed of the optimizer's state where a weight regrows:
        "first" moments (leaves under mu, m, trace, momentum, ema), "all" that have
        the weight's path and shape, or "none". Fresh second moments at a large
        count would overshoot several learning rates.
      replace_update: skip the optimizer on steps where something regrows, as RigL
        does: the change of masks is that step's update.

    Raises:
      ValueError: on a pruner that needs raw weights, or without parameters.
    """
    if reset not in ("first", "all", "none"):
        raise ValueError(f"pruned: reset={reset!r} is none of 'first', 'all', 'none'")
    optimizer = optax.with_extra_args_support(optimizer)
    pruner = optax.with_extra_args_support(pruner)

    def init(params):
        return PrunedState(pruner.init(params), optimizer.init(params))

    def update(updates, state, params=None, **extra):
        if params is None:
            raise ValueError(NEED_PARAMS.format(name="pruned"))
        passed, pruner_state = pruner.update(
            updates, state.pruner, params, exact_zeros=True, **extra
        )
        before, after = masks(state.pruner), masks(pruner_state)
        regrown = {path: mask & ~before[path] for path, mask in after.items()}

        def step():
            return optimizer.update(passed, state.optimizer, params, **extra)

        if replace_update:
            any_regrown = jnp.any(jnp.stack([jnp.any(mask) for mask in regrown.values()]))
            idle = jax.tree.map(jnp.zeros_like, jax.eval_shape(step)[0])
            changes, inner = lax.cond(any_regrown, lambda: (idle, state.optimizer), step)
        else:
            changes, inner = step()
        if reset != "none":
            inner = _reset(inner, regrown, reset)
        return _zeroing(changes, params, after), PrunedState(pruner_state, inner)

    return optax.GradientTransformationExtraArgs(init, update)


def _zeroing(updates: Tree, params: Tree, masks: dict[str, Bool[Array, "..."]]) -> Tree:
    """where(mask, update, -weight): adding it leaves +0 exactly, also from -0."""
    weights, changes = leaves_by_path(params), leaves_by_path(updates)
    return replace_by_path(
        updates,
        {
            path: jnp.where(mask, changes[path].astype(weights[path].dtype), -weights[path])
            for path, mask in masks.items()
        },
    )


def _reset(state: Tree, regrown: dict[str, Bool[Array, "..."]], which: str) -> Tree:
    """Zeroes moments of regrown weights: leaves whose path ends with the weight's."""
    cleared = {}
    for path, leaf in leaves_by_path(state).items():
        for target, mask in regrown.items():
            field = path.removesuffix("/" + target)
            is_moment = field != path and jnp.shape(leaf) == mask.shape
            if is_moment and (which == "all" or field.rpartition("/")[2] in FIRST_MOMENTS):
                cleared[path] = jnp.where(mask, jnp.zeros((), leaf.dtype), leaf)
    return replace_by_path(state, cleared)


def _is_prune_state(node: Any) -> bool:
    return isinstance(node, PruneState)
