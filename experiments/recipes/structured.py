"""Recipes that end with whole heads and neurons: movement, and magnitude as its rival."""

from collections.abc import Sequence

import optax

import jaxsparse as js
from experiments.recipes import magnitudes
from experiments.recipes.base import RECIPES, Recipe, Setup, ramp_named


@RECIPES.register("structured_movement")
def structured_movement(
    setup: Setup,
    begin: float,
    end: float,
    factors: Sequence[tuple[str, float]] = ((".*", 0.0),),
    score_rate: float = 1e-2,
    initial: float | None = None,
    final: float = 0.0,
    power: float = 3.0,
    resolve: str = "union",
    refill: bool = True,
) -> Recipe:
    """Movement sparsity as NNCF trains it (Sanh et al., 2020; Lagunas et al., 2021): a
    threshold on the scores rises between ``begin`` and ``end``, how much it removes is up
    to a regularizer; then whole heads and neurons go and the rest is fine-tuned.

    Args:
      setup: see ``Setup``; of the patterns, blocks for attention and channels for the
        feed-forward parts. No target plays a part.
      begin: first masks; the scores learn from the first step.
      end: masks stay from there on.
      factors: (path regex, weight of the regularizer there). A group counts by its size:
        what empties a block of 1,024 weights hardly moves a neuron.
      score_rate: learning rate of the scores' Adam.
      initial: the threshold at ``begin``; None finds one under which few scores lie.
      final: the threshold at ``end``.
      power: of its rise.
      resolve: "union" keeps a head or neuron that any of its weights keeps,
        "intersection" one that all do.
      refill: makes what is kept dense again, as NNCF does; its new weights start from zero,
        where NNCF takes up the values of before. False leaves the zeros in it.
    """
    start, stop = setup.at(begin=begin, end=end)
    optimizer, rate = setup.optimizer((start,) if start else ())
    score = js.movement(optimizer=optax.adam(score_rate), regularization=dict(factors))
    # Masks of step `start` would be there after `start` steps, where the model is still dense.
    threshold = js.importance_threshold(
        begin=start + 1, end=stop, initial=initial, final=final, power=power
    )
    pruner = js.prune(
        setup.rules, score=score, schedule=threshold, regrowth=js.straight_through("masked")
    )
    return Recipe(
        optax.chain(pruner, optimizer),
        rate,
        dense_until=start,
        has_target=False,
        structure={"resolve": resolve, "refill": refill},
        structure_at=stop,
    )


@RECIPES.register("structured_magnitude")
def structured_magnitude(
    setup: Setup,
    begin: float,
    end: float,
    every: float = 1 / 200,
    ramp: str = "cubic",
    resolve: str = "union",
    refill: bool = True,
) -> Recipe:
    """What ``structured_movement`` is compared with: the same patterns, steps and ending,
    but the groups of least magnitude go, and the target says how many.

    Args:
      setup: see ``Setup``.
      begin: first masks.
      end: the target is reached; masks stay from there on.
      every: steps between mask updates.
      ramp: "cubic", "linear", "cosine" or "exponential".
      resolve, refill: as in ``structured_movement``.
    """
    start, stop = setup.at(begin=begin, end=end)
    optimizer, rate = setup.optimizer((start,) if start else ())
    # The last masks are chosen in the step before `stop`.
    schedule = ramp_named(ramp)(0.0, begin=start, end=stop - 1, every=setup.interval(every))
    score = magnitudes.unit_magnitude(setup.structure)
    pruner = setup.prune(schedule, score=score, regrowth=js.straight_through("masked"))
    return Recipe(
        optax.chain(pruner, optimizer),
        rate,
        dense_until=start,
        structure={"resolve": resolve, "refill": refill},
        structure_at=stop,
    )
