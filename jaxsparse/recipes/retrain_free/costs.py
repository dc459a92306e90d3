"""What units cost: a measured curve of latency as a floor and a line."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class LatencyFit(NamedTuple):
    """A measured curve as a floor and a line: `fit(n)` is the time of n units.

    Attributes:
      threshold: up to so many units the time is `constant`.
      constant: in the unit of what was measured.
      slope: of every unit after these.
    """

    threshold: int
    constant: float
    slope: float

    def __call__(self, units: int) -> float:
        return self.constant + self.slope * max(units - self.threshold, 0)


def fit_latency(times: Sequence[float]) -> LatencyFit:
    """The floor and line nearest to times of 1, 2, ... units: takes the noise off a table.

    For every threshold t the constant is the mean of the first t times and the slope that of
    least squares through (t, constant), at least 0; taken is the t with the least squared error.

    Raises:
      ValueError: no times, and times that are not finite.

    Example:
      >>> fit_latency([2.0, 2.0, 2.5, 3.0])
      LatencyFit(threshold=2, constant=2.0, slope=0.5)

    References:
      Kwon et al. 2022, arXiv 2204.09656, section 4.2.
    """
    measured = np.asarray(times, np.float64)
    if measured.ndim != 1 or not measured.size or not np.isfinite(measured).all():
        raise ValueError(
            f"fit_latency: times of shape {measured.shape} with {np.isnan(measured).sum()} NaN; "
            "finite times of 1, 2, ... units would work"
        )
    best, least = LatencyFit(1, 0.0, 0.0), math.inf
    for threshold in range(1, measured.size + 1):
        constant = measured[:threshold].mean()
        steps, above = np.arange(1, measured.size - threshold + 1), measured[threshold:] - constant
        slope = max(float(steps @ above / (steps @ steps)), 0.0) if steps.size else 0.0
        error = ((measured[:threshold] - constant) ** 2).sum() + (
            (above - slope * steps) ** 2
        ).sum()
        if error < least - 1e-12 * measured @ measured:
            best, least = LatencyFit(threshold, float(constant), slope), error
    return best
