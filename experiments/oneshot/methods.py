"""Criteria by name, and what follows them."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from experiments.registry import Registry
from jaxsparse import calibration
from jaxsparse.calibration import Criterion, Reducer, Site, gram
from jaxsparse.calibration.reducers import statistics

CRITERIA: Registry[Criterion] = Registry("criterion")
for _make in (calibration.magnitude, calibration.wanda, calibration.sparsegpt, calibration.alps):
    CRITERIA.register(_make.__name__)(_make)
STAGES: Registry[Criterion] = Registry("stage", given=1)
_FOLLOWS: dict[str, Callable[[Any], Criterion]] = {
    "swaps": calibration.swapped,
    "reconstruction": calibration.reconstructed,
}
for _name, _follow in _FOLLOWS.items():
    STAGES.register(_name)(_follow)
# Attention and feed-forward parts fitted to the dense ones by gradient descent: the last stage.
FIT = "fit"
# What a layer's loss is measured by.
PRODUCTS, NORMS = "products", "norms"


def chain(criterion: str, stages: Sequence[str]) -> dict[str, Criterion]:
    """The criterion, and what it is after each stage but `FIT`.

    Raises:
      ValueError: an unknown name, with the near misses, a stage that is there twice, or one
        after `FIT`.

    >>> list(chain("wanda", ("swaps", "reconstruction")))
    ['wanda', 'wanda + swaps', 'wanda + swaps + reconstruction']
    """
    if isinstance(stages, str) or len(set(stages)) < len(stages):
        raise ValueError(f"config.stages = {stages!r}: a tuple of stages, each once, would work")
    if FIT in stages[:-1]:
        raise ValueError(f"config.stages = {stages!r}: {FIT!r} as the last stage would work")
    label, last = criterion, CRITERIA.create(criterion)
    found = {label: last}
    for stage in stages[: -1 if FIT in stages else None]:
        label, last = f"{label} + {stage}", STAGES.create(stage, last)
        found[label] = last
    return found


def measured(criteria: Mapping[str, Criterion]) -> dict[str, Criterion]:
    """Criteria that keep XᵀX, all of them, where one does: by it the loss of a layer is exact.

    Else, and by norms of inputs alone, the losses of two rows of a run could not be compared.
    """
    if all(measure(criterion) != PRODUCTS for criterion in criteria.values()):
        return dict(criteria)
    return {
        name: criterion if measure(criterion) == PRODUCTS else _with_gram(criterion)
        for name, criterion in criteria.items()
    }


def measure(criterion: Criterion) -> str | None:
    """What `Pruned.error` is measured by: `PRODUCTS`, `NORMS`, or None where it has neither.

    >>> measure(calibration.wanda()), measure(calibration.alps())
    ('norms', 'products')
    """
    kept = statistics(jax.eval_shape(lambda: criterion.reducer.init(Site("w", (1, 1), (0,), ()))))
    return PRODUCTS if "products" in kept else NORMS if "squares" in kept else None


def _with_gram(criterion: Criterion) -> Criterion:
    own, more = criterion.reducer, gram()

    def init(site):
        return own.init(site), more.init(site)

    def update(states, met, site):
        return own.update(states[0], met, site), more.update(states[1], met, site)

    def prune(weight, states, target, *known):
        return criterion.prune(weight, states[0], target, *known)

    return Criterion(Reducer(init, update), prune, criterion.known)
