"""`pruned`, the reference form: one optimizer, exact zeros after every step."""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Bool

from jaxsparse.masking import NEED_PARAMS, select, zero_masked
from jaxsparse.pruning import masks
from jaxsparse.trees import Tree, leaves_by_path, replace_by_path

FIRST_MOMENTS = ("mu", "m", "trace", "momentum", "ema")


class PrunedState(NamedTuple):
    """State of `pruned`: the pruner's and the optimizer's."""

    pruner: Any
    optimizer: optax.OptState


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
        # What regrows starts at exactly 0, whatever was stored there.
        stays = {path: mask & before[path] for path, mask in after.items()}
        return zero_masked(changes, params, stays), PrunedState(pruner_state, inner)

    return optax.GradientTransformationExtraArgs(init, update)


def _reset(state: Tree, regrown: dict[str, Bool[Array, "..."]], which: str) -> Tree:
    """Zeroes moments of regrown weights: leaves whose path ends with the weight's."""
    cleared = {}
    for path, leaf in leaves_by_path(state).items():
        for target, mask in regrown.items():
            field = path.removesuffix("/" + target)
            is_moment = field != path and jnp.shape(leaf) == mask.shape
            if is_moment and (which == "all" or field.rpartition("/")[2] in FIRST_MOMENTS):
                cleared[path] = select(~mask, leaf, 0)
    return replace_by_path(state, cleared)
