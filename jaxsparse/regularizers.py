"""Penalties that prepare weights for pruning, as optax transforms."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax.numpy as jnp
import optax
from jaxtyping import Array, Int

from jaxsparse.masking import NEED_PARAMS, next_count
from jaxsparse.patterns import widen
from jaxsparse.rules import LeafSpec, Rule, check_rules, resolve
from jaxsparse.scores import gradients_of, leaves_of
from jaxsparse.trees import Tree, leaves_by_path, replace_by_path


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
    _check(alpha, "add_group_lasso")

    def penalty(weight, spec):
        weight = widen(weight)
        norms = spec.expand(spec.pool(weight, "l2"))
        return jnp.where(norms > 0, weight / jnp.where(norms > 0, norms, 1), 0)

    return _add(alpha, rules, penalty, "add_group_lasso", _grouped)


def add_l1(alpha: float, rules: Sequence[Rule]) -> optax.GradientTransformationExtraArgs:
    """Adds the gradient of alpha * sum |w|: g <- g + alpha sign(w), w / |w| if w is complex.

    Args:
      alpha: strength, at least 0.
      rules: which leaves; their patterns do not matter.

    Raises:
      ValueError: on a negative alpha, bad rules, and at update without parameters.
    """
    _check(alpha, "add_l1")
    return _add(alpha, rules, lambda w, spec: jnp.sign(widen(w)), "add_l1", _any_pattern)


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
    _check(alpha, "prox_group_lasso")
    rules = check_rules(rules)

    def init(params):
        if leaves_by_path(params):  # optax.tree.map_params passes none
            _grouped(rules, params, "prox_group_lasso")
        return ProxGroupLassoState(jnp.zeros((), jnp.int32))

    def update(updates, state, params=None, **extra):
        del extra
        if params is None:
            raise ValueError(NEED_PARAMS.format(name="prox_group_lasso"))
        specs = _grouped(rules, params, "prox_group_lasso")
        weights, changes = leaves_of(params, specs), gradients_of(updates, specs)
        rate = learning_rate(state.count) if callable(learning_rate) else learning_rate

        def shrunk(path, spec):
            proposed = widen(weights[path]) + widen(changes[path])
            norms = spec.pool(proposed, "l2")
            size = spec.pool(jnp.ones_like(proposed, norms.dtype), "sum")
            # A norm of zero divides into infinity, and the group stays at zero.
            factor = jnp.maximum(0, 1 - rate * alpha * jnp.sqrt(size) / norms)
            factor = spec.expand(jnp.where(norms > 0, factor, 0))
            change = jnp.where(factor > 0, factor * proposed, 0) - widen(weights[path])
            return change.astype(jnp.promote_types(changes[path].dtype, weights[path].dtype))

        new = {path: shrunk(path, spec) for path, spec in specs.items()}
        return replace_by_path(updates, new), ProxGroupLassoState(next_count(state.count))

    return optax.GradientTransformationExtraArgs(init, update)


def _add(
    alpha: float,
    rules: Sequence[Rule],
    penalty: Callable[[Array, LeafSpec], Array],
    name: str,
    find: Callable[[tuple[Rule, ...], Tree, str], dict[str, LeafSpec]],
) -> optax.GradientTransformationExtraArgs:
    rules = check_rules(rules)

    def init(params):
        if leaves_by_path(params):  # optax.tree.map_params passes none
            find(rules, params, name)
        return optax.EmptyState()

    def update(updates, state, params=None, **extra):
        del extra
        if params is None:
            raise ValueError(NEED_PARAMS.format(name=name))
        specs = find(rules, params, name)
        weights, grads = leaves_of(params, specs), gradients_of(updates, specs)
        new = {
            path: grads[path] + (alpha * penalty(weights[path], spec)).astype(grads[path].dtype)
            for path, spec in specs.items()
        }
        return replace_by_path(updates, new), state

    return optax.GradientTransformationExtraArgs(init, update)


def _any_pattern(rules: tuple[Rule, ...], params: Tree, name: str) -> dict[str, LeafSpec]:
    del name
    return resolve(rules, params)


def _grouped(rules: tuple[Rule, ...], params: Tree, name: str) -> dict[str, LeafSpec]:
    specs = resolve(rules, params)
    for path, spec in specs.items():
        if spec.pattern.fixed:
            raise ValueError(
                f"{name}: {spec.pattern} on {path!r} has no groups to shrink; a rule with "
                "Block(4, 1) or add_l1 would work"
            )
    return specs


def _check(alpha: float, name: str) -> None:
    if isinstance(alpha, int | float) and alpha < 0:
        raise ValueError(f"{name}: alpha={alpha} is negative")
