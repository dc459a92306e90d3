"""What `prune` refuses before it computes anything, and what would work instead."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Int

from jaxsparse import schedules
from jaxsparse.movement import ImportanceThreshold
from jaxsparse.nm import NM
from jaxsparse.patterns import widen
from jaxsparse.regrowth import DropAndGrow, Regrowth
from jaxsparse.rules import LeafSpec


def check_arguments(when: Any, masks: Any, regrowth: Regrowth, sparsity: Any, ruled: bool) -> None:
    """Raises on arguments of the wrong kind, that would prune nothing, or be ignored."""
    if not isinstance(regrowth, Regrowth):
        raise TypeError(
            f"prune: {regrowth!r} is no regrowth; None, regrow_gradient() or straight_through() "
            "would work"
        )
    if when is None and masks is None:
        raise ValueError(
            "prune: neither schedule nor masks, so nothing would ever be pruned; "
            "schedule=one_shot(), schedule=cubic(begin=0, end=1000) or "
            "masks=compute_masks(params, rules) would work"
        )
    if when is not None and not ruled:
        raise ValueError(
            "prune: a schedule chooses masks anew, and without rules nothing says of which pattern "
            "and how sparse; rules beside the masks, or no schedule, would work"
        )
    if when is None and isinstance(regrowth, DropAndGrow):
        raise ValueError(
            f"prune: {regrowth} moves groups when the schedule says so, and there is none; rules "
            "and schedule=constant(end=1000, every=100) would work"
        )
    if sparsity is not None and schedules.is_given(when):
        raise ValueError(
            f"prune: the schedule is the sparsity itself, but sparsity={sparsity} is given too; "
            "schedule=cubic(begin=0, end=1000), or no sparsity, would work"
        )


def check_pairs(specs: Mapping[str, LeafSpec], when: Any, regrowth: Regrowth) -> None:
    """Raises ValueError on the pairs that cannot work together."""
    for path, spec in specs.items():
        fixed = isinstance(spec.pattern, NM)
        if fixed and isinstance(regrowth, DropAndGrow):
            raise ValueError(
                f"{regrowth} moves groups about, but {spec.pattern} on {path!r} fixes how many of "
                "every m are kept; straight_through() would work"
            )
        if fixed and isinstance(when, ImportanceThreshold):
            raise ValueError(
                f"importance_threshold keeps as many as pass it, but {spec.pattern} on {path!r} "
                "fixes how many; a count schedule such as cubic(...) would work"
            )
        if spec.sparsity is not None and when is not None and schedules.is_given(when):
            raise ValueError(
                f"the schedule is the sparsity itself, but the rule of {path!r} says "
                f"{spec.sparsity}; a rule without sparsity would work"
            )


def check_finite(weights: Mapping[str, Array]) -> None:
    """Raises ValueError on NaN and infinities, where values are at hand.

    An update is added, and nothing that is added to a NaN makes it zero.
    """
    for path, weight in weights.items():
        bad = _not_finite(weight)  # traced under jit, whatever the weight is
        if not isinstance(bad, Tracer) and bad:
            raise ValueError(
                f"{bad} of the weights of {path!r}, of shape {weight.shape}, are NaN or infinite: "
                "no update would make zeros of them when they are masked; jnp.nan_to_num of this "
                "leaf would work, and where masks hide them already js.mask_params(params, masks)"
            )


@jax.jit
def _not_finite(weight: Array) -> Int[Array, ""]:
    return jnp.sum(~jnp.isfinite(widen(weight)))
