"""Criteria by name, and what follows them."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from experiments.registry import Registry
from jaxsparse import calibration
from jaxsparse.calibration import Criterion
from jaxsparse.calibration.criteria import measured_by, with_products

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
    if all(measured_by(criterion) != "products" for criterion in criteria.values()):
        return dict(criteria)
    return {name: with_products(criterion) for name, criterion in criteria.items()}
