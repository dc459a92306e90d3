"""What happens to masked groups when masks are chosen again."""

import dataclasses
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from jaxsparse.patterns.base import widen
from jaxsparse.pruning.choosers import ChoiceContext, Counted, Groups, Pooled, Specs
from jaxsparse.pruning.scores import Leaves, pool_scores, random_scores
from jaxsparse.top_k import Candidates, count, top_k_masks


@dataclasses.dataclass(frozen=True, eq=False)
class StraightThrough(Counted):
    """Made by `straight_through`."""

    raw: ClassVar[bool] = True
    dense: bool

    def choose(self, scores: Pooled, state: Any, context: ChoiceContext) -> tuple[Groups, Any]:
        return self.best(scores, None, context.step, context.specs), state


@dataclasses.dataclass(frozen=True, eq=False)
class DropAndGrow(Counted):
    """Made by `regrow_random` and `regrow_gradient`."""

    moves: ClassVar[bool] = True
    by: Literal["random", "gradient"]
    fraction: float

    def __post_init__(self):
        if not 0 <= self.fraction <= 1:
            raise ValueError(f"regrowth: fraction {self.fraction} is not in [0, 1]")

    def first_masks(self, weights: Leaves, specs: Specs) -> Groups:
        """As many as the schedule begins with, at random."""
        chance = random_scores(jax.random.key(self.seed), weights)
        return self.best(pool_scores(chance, specs, weights), None, self.schedule.begin, specs)

    def choose(self, scores: Pooled, state: Any, context: ChoiceContext) -> tuple[Groups, Any]:
        """Keeps the best of what is kept, and fills up with what grows best.

        Dropped groups compete with the masked ones: what drops may come straight back.
        """
        step, groups, specs, grads, weights = context
        key = jax.random.fold_in(jax.random.key(self.seed), step)
        growth = pool_scores(self.growth(grads, key), specs, weights)
        kept = self.kept(step, specs, {path: (scores[path], groups[path]) for path in specs})
        survivors = {
            path: jnp.minimum(
                kept[path] - self.dropped(step, kept[path]),
                count(groups[path], len(spec.view.batch)),
            )
            for path, spec in specs.items()
        }
        stay = top_k_masks([Candidates(scores[p], survivors[p], groups[p]) for p in specs])
        grow = top_k_masks(
            [
                Candidates(growth[path], kept[path] - survivors[path], ~mask)
                for path, mask in zip(specs, stay, strict=True)
            ]
        )
        return {p: s | g for p, s, g in zip(specs, stay, grow, strict=True)}, state

    def dropped(self, step: Int[Array, ""], kept: Int[Array, "*batch"]) -> Int[Array, "*batch"]:
        """round(kept * fraction / 2 * (1 + cos(pi step / end))); no decay without an end."""
        share = jnp.float32(self.fraction)
        if self.schedule.end:
            share *= (
                1 + jnp.cos(jnp.pi * jnp.clip(step.astype(jnp.float32) / self.schedule.end, 0, 1))
            ) / 2
        return jnp.round(share * kept.astype(jnp.float32)).astype(jnp.int32)

    def growth(self, grads: Leaves, key: Array) -> Leaves:
        """Scores by which groups come back: |gradient|, or chance."""
        if self.by == "random":
            return random_scores(key, grads)
        return {path: jnp.abs(widen(g)) for path, g in grads.items()}


def straight_through(gradients: Literal["dense", "masked"] = "dense") -> StraightThrough:
    """Masks are chosen anew among *all* groups, from raw weights that stay dense.

    Bengio et al. 2013, arXiv 1308.3432; for n:m Zhou et al. 2021, arXiv 2102.04010.
    The forward pass sees masked weights, and "dense" hands their gradients to the
    raw weights as they are; "masked" keeps them from masked weights, which then
    move by regularization alone (movement sparsity). The stored weights never
    become zero, so use it in a chain without `apply_masks`, and `mask_params` at
    the end.
    """
    if gradients not in ("dense", "masked"):
        raise ValueError(f"straight_through: gradients={gradients!r} is no 'dense' or 'masked'")
    return StraightThrough(gradients == "dense")


def regrow_random(fraction: float = 0.3) -> DropAndGrow:
    """SET: drops the `fraction` of kept groups that score least, grows as many at random.

    Mocanu et al. 2018, arXiv 1707.04780. The fraction decays to 0 by a half cosine
    up to the schedule's end. Begins from random masks unless given some. What
    grows starts at exactly 0.
    """
    return DropAndGrow("random", fraction)


def regrow_gradient(fraction: float = 0.3) -> DropAndGrow:
    """RigL: like `regrow_random`, but grows where the dense gradient is largest.

    Evci et al. 2020, arXiv 1911.11134.
    """
    return DropAndGrow("gradient", fraction)
