"""The sparsities by which the layers of a language model lose least together."""

import logging
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

import jaxsparse as js
from experiments.oneshot import config as own
from experiments.oneshot import methods
from experiments.oneshot.models import LanguageModel
from jaxsparse.allocation import Allocation, Weights, exact, losses

_LOG = logging.getLogger(__name__)


def best(
    config: Any, model: LanguageModel, batches: Sequence[np.ndarray], rules: Sequence[js.Rule]
) -> Allocation:
    """The exact allocation of no more weights than `config.sparsity` everywhere keeps.

    Args:
      config: checked; its criterion prunes each layer to each of `config.levels`.
      model: dense.
      batches: tokens to calibrate by.
      rules: of the linear layers, with axes and without sparsity.
    """
    _LOG.info("pruning every layer to %d sparsities", len(config.levels))
    start, per = time.perf_counter(), own.competing(config)
    lost = losses(
        model.apply,
        model.params,
        [(batch,) for batch in batches],
        rules,
        config.levels,
        criterion=methods.CRITERIA.create(config.criterion),
        per=per,
    )
    weights = Weights(rules, model.params, per=per)
    # Half-way between two numbers of groups the smaller one.
    even = {path: 1 - config.sparsity - 1e-9 for path in lost}
    found = exact(lost, weights, weights.total(densities=even), levels=config.levels)
    about = dict(found.about) | {"seconds": time.perf_counter() - start}
    return Allocation(found.sparsities, about=about)
