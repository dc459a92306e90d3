"""Penalties that prepare weights for pruning, as optax transforms."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int

from jaxsparse.patterns.base import widen
from jaxsparse.patterns.rules import LeafSpec, Rule, check_rules, resolve
from jaxsparse.pruning.masking import NEED_PARAMS, next_count
from jaxsparse.pruning.scores import gradients_of, leaves_of
from jaxsparse.trees import leaves_by_path, replace_by_path


class ProxGroupLassoState(NamedTuple):
    """State of `prox_group_lasso`: steps done, for the learning rate's schedule."""

    count: Int[Array, ""]


def add_group_lasso(alpha: float, rules: Sequence[Rule]) -> optax.GradientTransformationExtraArgs:
    """Adds the gradient of alpha * sum over groups of ||w_b||_2.

    g <- g + alpha w_b / ||w_b||_2 with the Frobenius norm of the weights of group
    b, and the subgradient 0 for a group of zeros: nothing is kept from growing, and
    what is pruned stays so by its mask alone. A subgradient never reaches exact
    zero, and before an optimizer such as Adam it is preconditioned:
    `prox_group_lasso` does neither.

    Args:
      alpha: strength, at least 0; 6e-3 in the published recipes.
      rules: which leaves, in which groups.

    Raises:
      ValueError: on a negative alpha, bad rules, n:m rules (they have no groups),
        and at update without parameters.
    """

    def penalty(weight, spec):
        weight = widen(weight)
        norms = spec.expand(spec.pool(weight, "l2"))
        return jnp.where(norms > 0, weight / jnp.where(norms > 0, norms, 1), 0)

    return _add("add_group_lasso", alpha, rules, penalty, grouped=True)


def add_l1(alpha: float, rules: Sequence[Rule]) -> optax.GradientTransformationExtraArgs:
    """Adds the gradient of alpha * sum |w|: g <- g + alpha sign(w), w / |w| if w is complex.

    Args:
      alpha: strength, at least 0.
      rules: which leaves; their patterns do not matter.

    Raises:
      ValueError: on a negative alpha, bad rules, and at update without parameters.
    """
    return _add("add_l1", alpha, rules, lambda w, spec: jnp.sign(widen(w)), grouped=False)


def prox_group_lasso(
    learning_rate: float | optax.Schedule, alpha: float, rules: Sequence[Rule]
) -> optax.GradientTransformationExtraArgs:
    """Shrinks groups after the optimizer's step, down to exact zero.

    With v = w + u the weights that the optimizer proposes,

        w_b <- max(0, 1 - learning_rate * alpha * sqrt(|b|) / ||v_b||_2) v_b,

    the proximal step of the group lasso (Yuan and Lin 2006). Put it behind the
    optimizer and before `apply_masks`.

    Args:
      learning_rate: the optimizer's, a number or an optax schedule of the step.
      alpha: strength, at least 0.
      rules: which leaves, in which groups.

    Raises:
      ValueError: on a negative alpha, bad rules, n:m rules (they have no groups),
        and at update without parameters.
    """

    def shrunk(weight, change, spec, state):
        rate = learning_rate(state.count) if callable(learning_rate) else learning_rate
        proposed = widen(weight) + widen(change)
        norms = spec.pool(proposed, "l2")
        size = spec.pool(jnp.ones_like(proposed, norms.dtype), "sum")
        # A norm of zero divides into infinity, and the group stays at zero.
        factor = jnp.maximum(0, 1 - rate * alpha * jnp.sqrt(size) / norms)
        factor = spec.expand(jnp.where(norms > 0, factor, 0))
        moved = jnp.where(factor > 0, factor * proposed, 0) - widen(weight)
        return moved.astype(jnp.promote_types(change.dtype, weight.dtype))

    start = ProxGroupLassoState(jnp.zeros((), jnp.int32))
    return _transform("prox_group_lasso", alpha, rules, shrunk, start, grouped=True)


def _add(
    name: str,
    alpha: float,
    rules: Sequence[Rule],
    penalty: Callable[[Array, LeafSpec], Array],
    grouped: bool,
) -> optax.GradientTransformationExtraArgs:
    def added(weight, grad, spec, state):
        del state
        return grad + (alpha * penalty(weight, spec)).astype(grad.dtype)

    return _transform(name, alpha, rules, added, optax.EmptyState(), grouped)


def _transform(
    name: str,
    alpha: float,
    rules: Sequence[Rule],
    change: Callable[[Array, Array, LeafSpec, Any], Array],
    start: Any,
    grouped: bool,
) -> optax.GradientTransformationExtraArgs:
    """The transform of (weight, update, spec, state) -> update, for the leaves of the rules."""
    if isinstance(alpha, int | float) and alpha < 0:
        raise ValueError(f"{name}: alpha={alpha} is negative")
    rules = check_rules(rules)

    def find(params) -> dict[str, LeafSpec]:
        specs = resolve(rules, params)
        for path, spec in specs.items():
            if grouped and spec.pattern.fixed:
                raise ValueError(
                    f"{name}: {spec.pattern} on {path!r} has no groups to shrink; a rule with "
                    "Block(4, 1) or add_l1 would work"
                )
        return specs

    def init(params):
        if leaves_by_path(params):  # optax.tree.map_params passes none
            find(params)
        return start

    def update(updates, state, params=None, **extra):
        del extra
        if params is None:
            raise ValueError(NEED_PARAMS.format(name=name))
        specs = find(params)
        weights, changes = leaves_of(params, specs), gradients_of(updates, specs)
        new = {p: change(weights[p], changes[p], spec, state) for p, spec in specs.items()}
        return replace_by_path(updates, new), jax.tree.map(next_count, state)

    return optax.GradientTransformationExtraArgs(init, update)
