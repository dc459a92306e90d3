"""Recipes that prune leaves one by one."""

from typing import Any

import jax.numpy as jnp
import optax

import jaxsparse as js
from experiments.recipes.base import RECIPES, Recipe, Setup, ramp_named


@RECIPES.register("dense")
def dense(setup: Setup, begin: float = 0) -> Recipe:
    """No pruning. With ``begin`` the learning rate restarts there, as the sparse
    recipes' does: a dense model of the same budget to compare them with."""
    (start,) = setup.at(begin=begin)
    tx, rate = setup.optimizer((start,) if start else ())
    tx = optax.with_extra_args_support(tx)
    return Recipe(tx, rate, masks=lambda state: {}, dense_until=start)


@RECIPES.register("magnitude")
def magnitude(
    setup: Setup,
    begin: float,
    end: float,
    every: float = 1 / 200,
    ramp: str = "cubic",
    group_lasso: float = 0.0,
    form: str = "pruned",
) -> Recipe:
    """Gradual magnitude pruning (Zhu and Gupta, 2017).

    Args:
      setup: see ``Setup``.
      begin: first masks.
      end: the target is reached, the masks stay.
      every: steps between mask updates.
      ramp: "cubic", "linear", "cosine" or "exponential".
      group_lasso: weight of a group lasso on the rules' groups, added to the gradient.
      form: "pruned", or "chain" for the same parts as a plain ``optax.chain``.
    """
    start, stop = setup.at(begin=begin, end=end)
    if form not in ("pruned", "chain"):
        raise ValueError(f"recipe.form is 'pruned' or 'chain', not {form!r}")
    pruner = setup.prune(ramp_named(ramp)(0.0, begin=start, end=stop, every=setup.interval(every)))
    optimizer, rate = setup.optimizer((start,) if start else ())
    parts = [js.add_group_lasso(group_lasso, setup.rules)] if group_lasso else []
    if form == "chain":
        tx = optax.chain(pruner, *parts, optimizer, js.apply_masks())
    else:
        tx = js.pruned(optax.chain(*parts, optimizer), pruner)
    return Recipe(tx, rate, dense_until=start, wants_masks=form == "chain")


@RECIPES.register("one_shot")
def one_shot(setup: Setup, begin: float) -> Recipe:
    """The whole target at once at ``begin``, by magnitude; then fine-tuning."""
    (start,) = setup.at(begin=begin)
    optimizer, rate = setup.optimizer((start,) if start else ())
    tx = js.pruned(optimizer, setup.prune(js.one_shot(begin=start)))
    return Recipe(tx, rate, dense_until=start)


@RECIPES.register("iterative")
def iterative(setup: Setup, begin: float, rounds: int) -> Recipe:
    """Rounds of pruning and fine-tuning, the learning rate rewound at every round
    (Renda et al., 2020).

    Round i of n (from 0) prunes by magnitude to the density ``(1 - S)^((i+1)/n)``, so
    every round removes the same share of what is left. The rounds divide the steps
    after ``begin`` evenly.

    Args:
      setup: see ``Setup``.
      begin: the first round.
      rounds: how many.
    """
    (start,) = setup.at(begin=begin)
    if not 1 <= rounds <= setup.steps - start:
        raise ValueError(f"recipe.rounds = {rounds} must be 1 to {setup.steps - start} here")
    length = (setup.steps - start) // rounds
    restarts = tuple(start + index * length for index in range(rounds))
    optimizer, rate = setup.optimizer(tuple(restart for restart in restarts if restart))
    tx = js.pruned(optimizer, setup.prune(js.iterative(rounds, begin=start, every=length)))
    return Recipe(tx, rate, dense_until=start)


@RECIPES.register("nm")
def nm(setup: Setup, begin: float, end: float, every: float = 1 / 200) -> Recipe:
    """N:M sparsity with straight-through gradients (Zhou et al., 2021).

    Between ``begin`` and ``end`` the masks follow the raw weights, which stay dense
    and keep learning where they are masked; from ``end`` on the masks are fixed.
    """
    start, stop = setup.at(begin=begin, end=end)
    optimizer, rate = setup.optimizer((start,) if start else ())
    schedule = js.constant(begin=start, end=stop, every=setup.interval(every))
    pruner = setup.prune(schedule, regrowth=js.straight_through())
    return Recipe(optax.chain(pruner, optimizer), rate, dense_until=start)


@RECIPES.register("asp")
def asp(setup: Setup, begin: float, permute: bool = True, escapes: int = 100) -> Recipe:
    """NVIDIA's ASP (Mishra et al., 2021; Pool and Yu, 2021): trains dense up to
    ``begin``, permutes the channels, fixes n:m masks by magnitude and fine-tunes.

    Args:
      setup: see ``Setup``.
      begin: where the dense model is done.
      permute: False masks the channels in the order that they have.
      escapes: of the search.
    """
    (start,) = setup.at(begin=begin)
    if not start:
        raise ValueError("recipe.begin must be at least 1: ASP starts from a trained model")
    optimizer, rate = setup.optimizer((start,))
    tx = js.pruned(optimizer, setup.prune(js.one_shot(begin=start)))
    search = {"escapes": escapes, "seed": setup.seed} if permute else None
    return Recipe(tx, rate, dense_until=start, permutation=search)


@RECIPES.register("rigl")
def rigl(setup: Setup, end: float, every: float = 1 / 100, fraction: float = 0.3) -> Recipe:
    """RigL (Evci et al., 2020): sparse from the start; every ``every`` steps up to
    ``end`` the smallest weights go and those with the largest gradients come."""
    return _dynamic(setup, end, every, js.regrow_gradient(fraction), replace_update=True)


@RECIPES.register("set")
def set_(setup: Setup, end: float, every: float = 1 / 100, fraction: float = 0.3) -> Recipe:
    """SET (Mocanu et al., 2018): as RigL, but what comes is drawn at random."""
    return _dynamic(setup, end, every, js.regrow_random(fraction), replace_update=False)


def _dynamic(setup: Setup, end: float, every: float, regrowth: Any, replace_update: bool) -> Recipe:
    (stop,) = setup.at(end=end)
    pruner = setup.prune(js.constant(end=stop, every=setup.interval(every)), regrowth=regrowth)
    optimizer, rate = setup.optimizer(())
    return Recipe(js.pruned(optimizer, pruner, replace_update=replace_update), rate)


@RECIPES.register("movement")
def movement(
    setup: Setup,
    begin: float,
    end: float,
    every: float = 1,
    score_rate: float = 1e-2,
    regularization: float = 0.0,
) -> Recipe:
    """Movement pruning (Sanh et al., 2020): what moves towards zero goes.

    The scores learn from the first step. The raw weights stay dense, so that what
    is masked can come back.

    Args:
      setup: see ``Setup``.
      begin: first masks.
      end: the target is reached, the masks stay.
      every: steps between mask updates.
      score_rate: learning rate of the scores' Adam.
      regularization: weight of the penalty on the scores.
    """
    start, stop = setup.at(begin=begin, end=end)
    optimizer, rate = setup.optimizer((start,) if start else ())
    score = js.movement(optimizer=optax.adam(score_rate), regularization=regularization)
    pruner = setup.prune(
        js.cubic(0.0, begin=start, end=stop, every=setup.interval(every)),
        score=score,
        regrowth=js.straight_through("masked"),
    )
    return Recipe(optax.chain(pruner, optimizer), rate, dense_until=start)


@RECIPES.register("group_lasso")
def group_lasso(setup: Setup, begin: float, end: float, alpha: float) -> Recipe:
    """Proximal group lasso (Yuan and Lin, 2006), then the zero groups become the masks.

    Between ``begin`` and ``end`` every step shrinks every group by
    ``learning rate * alpha * sqrt(group size)`` in norm, down to exact zero. At
    ``end`` the shrinking stops and what is zero stays zero. ``alpha`` decides the
    sparsity; the config's target plays no part.
    """
    start, stop = setup.at(begin=begin, end=end)
    optimizer, rate = setup.optimizer(tuple(step for step in (start, stop) if step))

    def shrinking_rate(step):
        return jnp.where((step >= start) & (step < stop), rate(step), 0.0)

    # Masks are chosen for step `stop` alone, where a group's magnitude must lie above 0, and
    # freeze before `final` is ever asked for.
    freeze = js.importance_threshold(begin=stop, end=stop + 1, initial=0.0, final=1.0)
    pruner = js.prune(setup.rules, schedule=freeze, seed=setup.seed)
    prox = js.prox_group_lasso(shrinking_rate, alpha, setup.rules)
    return Recipe(optax.chain(pruner, optimizer, prox), rate, dense_until=start, has_target=False)
