"""`pruned`, the reference form: one optimizer, exact zeros after every step."""

import contextlib
import itertools
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Bool

from jaxsparse.patterns.rules import describe
from jaxsparse.pruning.masking import NEED_PARAMS, select, zero_masked
from jaxsparse.pruning.prune import NEEDS_RAW, RawPruner
from jaxsparse.pruning.state import has_masks, masks
from jaxsparse.trees import Tree, flatten, leaves_by_path, replace_by_path

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

    Updates are added, and no sum with a NaN or an infinity is zero: weights that
    are not finite are refused at init, and what becomes so in training is zero only
    in `mask_params(params, masks(state))`; `report` counts it.

    Args:
      optimizer: any optax transformation, regularizers included.
      pruner: a `prune(...)`, or partitions and wraps of it.
      reset: what is zeroed of the optimizer's state where a weight regrows:
        "first" moments (the trees like the parameters that are called mu, m, trace,
        momentum or ema), "all" trees like the parameters, or "none". Fresh second
        moments at a large count would overshoot several learning rates.
      replace_update: skip the optimizer on steps where something regrows, as RigL
        does: the change of masks is that step's update.

    Raises:
      ValueError: on a pruner that needs raw weights or is none, or without parameters.
      TypeError: if the optimizer fails, and leaves that are no floating-point arrays
        are among the parameters; they are named.
    """
    if reset not in ("first", "all", "none"):
        raise ValueError(f"pruned: reset={reset!r} is none of 'first', 'all', 'none'")
    if isinstance(pruner, RawPruner):
        raise ValueError(NEEDS_RAW)
    optimizer = optax.with_extra_args_support(optimizer)
    pruner = optax.with_extra_args_support(pruner)

    def init(params):
        pruner_state = pruner.init(params)
        if not has_masks(pruner_state):
            raise ValueError(
                "pruned(optimizer, pruner): the second argument holds no masks; a prune(...), or "
                "partitions and wraps of it, would work there, and the optimizer comes first"
            )
        with _naming_odd_leaves(params):
            return PrunedState(pruner_state, optimizer.init(params))

    def update(updates, state, params=None, **extra):
        if params is None:
            raise ValueError(NEED_PARAMS.format(name="pruned"))
        passed, pruner_state = pruner.update(
            updates, state.pruner, params, exact_zeros=True, **extra
        )
        before, after = masks(state.pruner), masks(pruner_state)
        regrown = {path: mask & ~before[path] for path, mask in after.items()}

        def step():
            with _naming_odd_leaves(params):
                return optimizer.update(passed, state.optimizer, params, **extra)

        if replace_update:
            any_regrown = jnp.any(jnp.stack([jnp.any(mask) for mask in regrown.values()]))
            idle = jax.tree.map(jnp.zeros_like, jax.eval_shape(step)[0])
            changes, inner = lax.cond(any_regrown, lambda: (idle, state.optimizer), step)
        else:
            changes, inner = step()
        if reset != "none":
            inner = _reset(inner, params, regrown, reset)
        # What regrows starts at exactly 0, whatever was stored there.
        stays = {path: mask & before[path] for path, mask in after.items()}
        return zero_masked(changes, params, stays), PrunedState(pruner_state, inner)

    return optax.GradientTransformationExtraArgs(init, update)


@contextlib.contextmanager
def _naming_odd_leaves(params: Tree) -> Iterator[None]:
    """Optimizers fail on functions, keys, strings and some integers without saying where."""
    try:
        yield
    except Exception as error:
        odd = []
        for path, leaf in leaves_by_path(params).items():
            kind = describe(leaf)
            if isinstance(kind, str):
                odd.append(f"{path!r}, {kind}")
            elif not hasattr(leaf, "dtype") or not jnp.issubdtype(kind.dtype, jnp.inexact):
                odd.append(f"{path!r}, {type(leaf).__name__} of {kind.dtype}")
        if not odd:
            raise
        raise TypeError(
            f"the optimizer failed ({error}), and not all parameters are floating-point arrays: "
            f"{'; '.join(odd)}. None in their place (equinox.partition, nnx.split), or "
            "optax.masked around the optimizer, would work"
        ) from error


def _reset(state: Tree, params: Tree, regrown: dict[str, Bool[Array, "..."]], which: str) -> Tree:
    """Zeroes moments of regrown weights, in the trees of the state that are like the parameters."""
    leaves, cleared = leaves_by_path(state), {}
    for tree in _trees_like(params, state):
        if which == "first" and tree.rpartition("/")[2] not in FIRST_MOMENTS:
            continue
        for target, mask in regrown.items():
            path = f"{tree}/{target}".removeprefix("/")
            if path in leaves and jnp.shape(leaves[path]) == mask.shape:
                cleared[path] = select(~mask, leaves[path], 0)
    return replace_by_path(state, cleared)


def _trees_like(params: Tree, state: Tree) -> list[str]:
    """Paths of the subtrees of `state` whose leaves are at the paths of the parameters.

    All of the paths and no others: `mu/ema`, where a copy of `encoder` lies at
    `ema/encoder`, has no moments of `encoder`. Only the holes that `optax.masked`
    and `partition` leave may stand for leaves.
    """
    wanted = set(leaves_by_path(params))
    below: dict[str, list[tuple[str, bool]]] = {}
    for path, node in flatten(state, lambda node: isinstance(node, optax.MaskedNode)):
        parts, hole = path.split("/"), isinstance(node, optax.MaskedNode)
        for depth in range(len(parts) + 1):
            inside = "/".join(parts[depth:])
            below.setdefault("/".join(parts[:depth]), []).append((inside, hole))

    def like(entries: list[tuple[str, bool]]) -> bool:
        found = {path for path, hole in entries if not hole}
        holes = {path for path, hole in entries if hole}
        missing = wanted - found
        # A hole may stand for a whole subtree: for paths of which its own is a beginning.
        begun = (itertools.accumulate(path.split("/"), "{}/{}".format) for path in missing)
        return found <= wanted and not any(map(holes.isdisjoint, begun))

    return [tree for tree, entries in below.items() if like(entries)]
