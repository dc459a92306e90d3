"""Movement sparsity: learn which groups to keep from where weights move.

Sanh et al. 2020, arXiv 2005.07683; Lagunas et al. 2021, arXiv 2109.04838. Every
group has a learned score S; the straight-through gradient of S is the sum over
its group of (dL/dW') * W, masked positions included, where W' is the masked
weight. Raw weights stay dense: products with masked weights would be zero and
nothing could grow back.
"""

import dataclasses
import math
import re
from collections.abc import Collection, Mapping
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jaxsparse.patterns.base import real, widen
from jaxsparse.patterns.rules import LeafSpec, is_real
from jaxsparse.pruning.choosers import ChoiceContext, Chooser, Groups, Pooled
from jaxsparse.pruning.scores import Leaves, Score, ScoreContext
from jaxsparse.top_k import (
    Candidates,
    count,
    from_ordered_bits,
    kth_largest,
    ordered_bits,
    over,
    search_thresholds,
    top_k_masks,
)
from jaxsparse.trees import near_misses
from jaxsparse.uint64 import UInt64, product, total

FLOOR = 0.98  # the importance threshold never prunes more than this quantile
LAST_STEP = 2**31 - 1  # steps are counted in int32
SEED_SHARE = 0.001  # share of the scores below the threshold that is found, not given


class MovementState(NamedTuple):
    """Scores one a group, at least float32, and the state of their optimizer."""

    scores: Leaves
    optimizer: optax.OptState


def movement(
    optimizer: optax.GradientTransformation | None = None,
    regularization: float | Mapping[str, float] = 0.0,
) -> Score:
    """Learned scores: S <- S + optimizer(groupsum(dL/dW' * W) + r).

    r is the gradient of ramp * 0.5 * mean over layers of sum over the layer's leaves of
    regularization * mean(sigmoid(S)) * group size: a kernel and its bias are one layer.
    NNCF's per-row groups (out, in) are `Channel(-1)` here, and the bias that goes with
    `Block(r, c)` is a rule of its own with `Block(1, c)`.

    Use it with `importance_threshold` or with any count schedule (the top-k form),
    and with regrowth `straight_through()`.

    Args:
      optimizer: of the scores alone; default `optax.adam(1e-2)`. Give it no weight
        decay.
      regularization: the importance regularization factor, at least 0; or factors by
        expression of the leaf's path (`re.fullmatch`, as in `Rule`), one for each leaf.
        It weighs a group by its size: what prunes a block of 1,024 entries to the floor
        hardly moves a neuron.

    Raises:
      ValueError: if a factor is no number from 0 on, or an expression is none; when it sees
        the leaves, if one matches no expression or several, or an expression matches no leaf.

    >>> score = movement(regularization={".*attention.*": 0.02, ".*mlp.*": 0.5})
    """
    for name, factor in _by_expression(regularization).items():
        if not is_real(factor) or not 0 <= float(factor) < math.inf:
            raise ValueError(
                f"movement: regularization {factor!r} of {name!r}; a number from 0 on would work"
            )
        try:
            re.compile(name)
        except (re.error, TypeError) as error:
            raise ValueError(
                f"movement: the regularization of {name!r} is of no regular expression: {error}"
            ) from error
    learner = optax.adam(1e-2) if optimizer is None else optimizer

    def init(weights, specs) -> Any:
        _factors(regularization, weights)  # mistakes are seen before the first step
        # Pooled from the weight, so that scores are sharded as the weight is.
        scores: Any = {p: jnp.zeros_like(specs[p].pool(w, "sum")) for p, w in weights.items()}
        return MovementState(scores, learner.init(scores))

    def update(grads, state, weights, context: ScoreContext):
        layers = len({path.rpartition("/")[0] for path in weights})
        factors = _factors(regularization, weights)

        def gradient(path):
            spec, score = context.specs[path], state.scores[path]
            # Of complex weights: the change of the loss with dW' = W is Re(dL/dW' W).
            moved = jnp.real(widen(grads[path]) * widen(weights[path]))
            moved = spec.pool(moved, "sum")
            slope = jax.nn.sigmoid(score) * jax.nn.sigmoid(-score)
            weight = factors[path] * penalty_weight(spec, layers)
            return moved + (context.ramp * weight).astype(score.dtype) * slope

        steps, learned = learner.update(
            {path: gradient(path) for path in weights}, state.optimizer, state.scores
        )
        scores: Any = optax.apply_updates(state.scores, steps)
        return scores, MovementState(scores, learned)

    return Score(init, update)


def penalty_weight(spec: LeafSpec, layers: int) -> float:
    """What sigmoid(S) of one group weighs in the regularizer, at a factor of 1."""
    groups = math.prod(spec.group_shape)
    return 0.5 * spec.pattern.group_size(spec.view) / max(1, groups * layers)


def _by_expression(regularization: float | Mapping[str, float]) -> Mapping[str, float]:
    return regularization if isinstance(regularization, Mapping) else {".*": regularization}


def _factors(
    regularization: float | Mapping[str, float], paths: Collection[str]
) -> dict[str, float]:
    """The regularization factor of every leaf; a ValueError where it is not one."""
    factors, found = _by_expression(regularization), {}
    for path in paths:
        meant = [name for name in factors if re.fullmatch(name, path)]
        if len(meant) != 1:
            raise ValueError(
                f"movement: leaf {path!r} has {len(meant)} regularization factors, of {meant} "
                f"among {list(factors)}; one expression that matches it would work, 0.0 is no "
                "regularizer"
            )
        found[path] = factors[meant[0]]
    for name in factors:
        if not any(re.fullmatch(name, path) for path in paths):
            raise ValueError(
                f"movement: the regularization of {name!r} matches no leaf that rules name; "
                f"{near_misses(name, paths)}"
            )
    return found


@dataclasses.dataclass(frozen=True)
class ImportanceThreshold(Chooser):
    """Masks are S > tau(t) instead of a count; made by `importance_threshold`."""

    raw: ClassVar[bool] = True

    initial: float | None
    final: float
    begin: int
    end: int
    power: float
    sigmoid: bool
    hold: bool

    def __post_init__(self):
        if not 0 <= self.begin < self.end:
            raise ValueError(
                f"importance_threshold: 0 <= begin < end must hold, got {self.begin}, {self.end}"
            )
        if self.end > LAST_STEP:
            raise ValueError(
                f"importance_threshold: end={self.end} lies beyond the steps that are counted; "
                f"one of at most {LAST_STEP} would work"
            )
        if self.initial is None and self.begin == 0:
            raise ValueError(
                "importance_threshold: initial=None is found from the scores at step `begin`, "
                "and at step 0 there are none; begin >= 1 or a given initial would work"
            )
        if self.initial is not None and self.initial >= self.final:
            raise ValueError(
                f"importance_threshold: initial={self.initial} must lie below final={self.final}"
            )

    def ramp(self, step: Int[Array, ""] | int) -> Float[Array, ""]:
        """c(t) = 1 - (1 - p)^power inside [begin, end), strength of the regularizer."""
        step = jnp.asarray(step)
        off = (step < self.begin) | ((step >= self.end) & (not self.hold))
        return jnp.where(off, 0.0, self._curve(step))

    def threshold(
        self, step: Int[Array, ""] | int, initial: Float[Array, ""] | float
    ) -> Float[Array, ""]:
        """tau(t) = tau_0 + c(t) (tau_f - tau_0); -inf before `begin`, tau_f from `end` on."""
        step = jnp.asarray(step)
        value = initial + self._curve(step) * (self.final - initial)
        return jnp.where(step < self.begin, -jnp.inf, jnp.where(step < self.end, value, self.final))

    def updates_at(self, step: Int[Array, ""]) -> Bool[Array, ""]:
        """Whether masks are chosen for step + 1: `end` and what follows keep those of end - 1."""
        after = (step + 1 >= self.end) & (not self.hold)
        return (step + 1 >= self.begin) & ~after

    def init(self, weights: Leaves) -> Float[Array, ""]:
        """tau_0, NaN until it is found."""
        dtype = jnp.result_type(*(jax.eval_shape(real, w) for w in weights.values()))
        return jnp.asarray(jnp.nan if self.initial is None else self.initial, dtype)

    def choose(
        self, scores: Pooled, state: Float[Array, ""], context: ChoiceContext
    ) -> tuple[Groups, Float[Array, ""]]:
        """Returns the masks for step + 1 and tau_0."""
        step, specs, initial = context.step, context.specs, state
        if self.sigmoid:
            scores = {path: jax.nn.sigmoid(s) for path, s in scores.items()}
        if self.initial is None:
            # Not at `begin` alone: a schedule that was told its steps after the first epoch
            # may come too late for that, and no score lies above a threshold of NaN.
            begins = step + 1 == self.begin
            initial = lax.cond(
                begins | jnp.isnan(initial),
                lambda: jnp.minimum(_low_score(scores, specs), self.final),
                lambda: initial,
            )
        tau = self.threshold(step + 1, initial)
        return _above(scores, tau, specs), initial

    def _curve(self, step: Array) -> Float[Array, ""]:
        progress = (step - self.begin).astype(jnp.result_type(float)) / (self.end - self.begin)
        return 1 - (1 - jnp.clip(progress, 0.0, 1.0)) ** self.power


def importance_threshold(
    *,
    begin: int,
    end: int,
    initial: float | None = None,
    final: float = 0.0,
    power: float = 3.0,
    sigmoid: bool = False,
    hold: bool = False,
) -> ImportanceThreshold:
    """The threshold form of movement sparsity, a schedule for `prune`.

    During step t (from 0) the masks are S > tau(t):

        t < begin:          tau = -inf, no regularizer
        begin <= t < end:   tau = tau_0 + c (tau_f - tau_0), regularizer c * lambda
        t >= end:           masks of step end - 1, no regularizer

    with p = (t - begin) / (end - begin), c = 1 - (1 - p)^power. As in NNCF masks freeze
    before the choice that tau_f itself would make. Every leaf keeps its top 2 % whatever
    the threshold, and always one group.

    Args:
      begin, end: steps, 0 <= begin < end.
      initial: tau_0; None finds it once, at the first choice, so that 0.1 % of all scores lie below
        (and takes tau_f if that lies above it).
      final: tau_f.
      power: of the ramp.
      sigmoid: compare sigmoid(S) instead of S (nn_pruning).
      hold: from `end` on the threshold is tau_f, and regularizer and masks keep moving
        (nn_pruning).

    Raises:
      ValueError: on an empty window, one that ends after step 2^31 - 1, initial >= final, or
        nothing to find tau_0 from.
    """
    return ImportanceThreshold(initial, final, begin, end, power, sigmoid, hold)


def _above(scores: Pooled, tau: Float[Array, ""], specs: Mapping[str, LeafSpec]) -> Groups:
    """S > min(tau, quantile(expanded S, FLOOR)), and at least the best group.

    All leaves are searched in one loop: one for each is slower to compile.
    """
    bits, ranks = {}, {}
    for path, spec in specs.items():
        batch, bits[path] = len(spec.view.batch), ordered_bits(scores[path])
        shape, size = scores[path].shape, spec.pattern.group_size(spec.view)
        groups = math.prod(shape[batch:])
        # S > quantile holds exactly for S above the order statistic just below it.
        below = math.floor(FLOOR * (groups * size - 1)) // size
        ranks[path] = jnp.full(shape[:batch], groups - below, jnp.int32)
    cuts = kth_largest([*bits.values()], [*ranks.values()])
    best = top_k_masks([Candidates(scores[p], jnp.ones_like(rank)) for p, rank in ranks.items()])
    masks = {}
    for path, cut, first in zip(specs, cuts, best, strict=True):
        mask = (scores[path] > tau) | (bits[path] > over(cut, bits[path]))
        empty = count(mask, ranks[path].ndim) == 0
        masks[path] = mask | (first & over(empty, mask))
    return masks


def _low_score(
    scores: Mapping[str, Float[Array, "..."]], specs: Mapping[str, LeafSpec]
) -> Float[Array, ""]:
    """The k-th smallest of all expanded scores, k = min(n, floor(SEED_SHARE n) + 1)."""
    sizes = [specs[p].pattern.group_size(specs[p].view) for p in scores]
    entries = sum(s.size * size for s, size in zip(scores.values(), sizes, strict=True))
    rank = min(entries, math.floor(SEED_SHARE * entries) + 1)
    wanted = UInt64.of(entries - rank + 1)

    def enough(counts):
        return [total([product(c, g) for c, g in zip(counts, sizes, strict=True)]) >= wanted] * len(
            counts
        )

    cuts = search_thresholds([ordered_bits(s) for s in scores.values()], [()] * len(sizes), enough)
    return from_ordered_bits(cuts[0])
