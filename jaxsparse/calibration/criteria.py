"""How one kernel is pruned by what it meets: pairs of functions, and what follows them."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxsparse.calibration.admm import admm
from jaxsparse.calibration.brain_surgeon import brain_surgeon
from jaxsparse.calibration.layer_loss import DAMPING, quadratic, reconstruct
from jaxsparse.calibration.reducers import Reducer, gram, square_norms
from jaxsparse.calibration.swaps import swap
from jaxsparse.calibration.targets import Target
from jaxsparse.patterns.nm import NM

Found = tuple[Bool[Array, "k n"], Float[Array, "k n"] | None]


class Criterion(NamedTuple):
    """A one-shot method; write your own as a pair of functions.

    Attributes:
      reducer: what is kept of the values that a kernel meets.
      prune: called as prune(weight, state, target) with a kernel (K, N) in float32, the state
        of its reducer and a `Target`; returns the mask (K, N), True is kept, and weights
        (K, N), None where those that are kept stay as they are. What the mask leaves out is
        stored as +0 in any case. `jit` traces it.

    Example:
      >>> def prune(weight, state, target):
      ...     return target.mask(jnp.abs(weight) * state["squares"][:, None]), None
      >>> steeper = Criterion(square_norms(), prune)
    """

    reducer: Reducer
    prune: Callable[[Float[Array, "k n"], Any, Target], Found]


def magnitude() -> Criterion:
    """|w|, which looks at no value; for comparison."""
    nothing = Reducer(lambda site: (), lambda state, met, site: state)
    return Criterion(nothing, lambda weight, state, target: (target.mask(jnp.abs(weight)), None))


def wanda() -> Criterion:
    """|w_ij| |X_i|, the norm of what the weight meets: Sun et al. 2023, arXiv 2306.11695.

    The weights stay. The source lets the entries of one output compete: `per="output"`.
    """

    def prune(weight, state, target):
        return target.mask(jnp.abs(weight) * jnp.sqrt(state["squares"])[:, None]), None

    return Criterion(square_norms(), prune)


def sparsegpt(*, damping: float = DAMPING, block: int = 128) -> Criterion:
    """Prunes input by input and has later ones make up: Frantar & Alistarh 2023, arXiv 2301.00774.

    Args:
      damping: of the mean of G's diagonal, added to it.
      block: inputs whose entries compete.
    """

    def prune(weight, state, target):
        problem = quadratic(weight, state["products"], damping)
        return brain_surgeon(problem, target, block=block)

    return Criterion(gram(), prune)


def alps(*, damping: float = DAMPING, iterations: int = 300, steps: int = 10) -> Criterion:
    """ADMM for the mask, conjugate gradients for the weights: Meng et al. 2024, arXiv 2406.07831.

    Args:
      damping: of the mean of G's diagonal, added to it.
      iterations: of ADMM, at most; some 20 to 30 are usual.
      steps: of conjugate gradients.
    """

    def prune(weight, state, target):
        problem = quadratic(weight, state["products"], damping)
        return admm(problem, target, iterations=iterations, steps=steps)

    return Criterion(gram(), prune)


def swapped(criterion: Criterion, *, damping: float = DAMPING, limit: int = 1000) -> Criterion:
    """Another criterion's mask, improved by 1-swaps; the weights stay as they were.

    Args:
      criterion: magnitude, wanda or one of your own whose mask is of single weights.
      damping: of the mean of G's diagonal, added to it.
      limit: exchanges in a column, at most.
    """

    def improve(weight, state, target, mask, found):
        del found
        group = target.span if isinstance(target.pattern, NM) else None
        if group is None and not target.single:
            raise ValueError(f"swapped: groups of {target.pattern} cannot be swapped one by one")
        problem = quadratic(weight, state["products"], damping)
        return swap(problem, mask, group=group, limit=limit), None

    return _then(criterion, improve)


def reconstructed(criterion: Criterion, *, damping: float = DAMPING, steps: int = 15) -> Criterion:
    """Another criterion's mask, with the weights under it that lose least.

    Args:
      criterion: any.
      damping: of the mean of G's diagonal, added to it.
      steps: of conjugate gradients: 5 come within some 2 % of least squares, 15 are exact.
    """

    def improve(weight, state, target, mask, found):
        del target
        problem = quadratic(weight, state["products"], damping)
        return mask, reconstruct(problem, mask, steps=steps, start=found)

    return _then(criterion, improve)


def _then(criterion: Criterion, improve: Callable[..., Found]) -> Criterion:
    first, second = criterion.reducer, gram()

    def init(site):
        return {"first": first.init(site), "gram": second.init(site)}

    def update(state, met, site):
        return {
            "first": first.update(state["first"], met, site),
            "gram": second.update(state["gram"], met, site),
        }

    def prune(weight, state, target):
        mask, found = criterion.prune(weight, state["first"], target)
        return improve(weight, state["gram"], target, mask, found)

    return Criterion(Reducer(init, update), prune)
