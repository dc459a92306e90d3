"""The geometry of a convolution's window, and the boxes that its outputs lie in."""

import dataclasses
import itertools
import math
import operator
from collections.abc import Sequence
from typing import Self

import numpy as np

from jaxsparse.activations.bounds import LARGEST, Bounds

PerAxis = int | Sequence[int]


@dataclasses.dataclass(frozen=True)
class Window:
    """Which fine place p, coarse place q and tap t belong together: p = s q + t dil - pad.

    Taps are numbered in row-major order of the kernel's axes, which are the coordinates'.

    Attributes:
      size, stride, dilation, padding: one number an axis.
    """

    size: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    padding: tuple[int, ...]

    def __post_init__(self):
        for name in ("size", "stride", "dilation"):
            if min(getattr(self, name)) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1 everywhere.")
        for k, d, pad in zip(self.size, self.dilation, self.padding, strict=True):
            require_int32(-2 * abs(pad), 2 * d * k + abs(pad), f"{self}")

    @classmethod
    def of(
        cls,
        rank: int,
        size: PerAxis,
        stride: PerAxis = 1,
        dilation: PerAxis = 1,
        padding: PerAxis | None = None,
    ) -> Self:
        """A window from numbers or one number an axis; padding None is `centred`.

        Raises:
          ValueError: another number of axes than `rank`, a size below 1.
          TypeError: numbers that are not whole.
        """

        def per_axis(name, value):
            values = (value,) * rank if np.ndim(value) == 0 else tuple(value)
            if len(values) != rank:
                raise ValueError(
                    f"{name}={value} needs {rank} numbers, one a spatial axis, or one."
                )
            return tuple(map(operator.index, values))

        size, dilation = per_axis("size", size), per_axis("dilation", dilation)
        padding = centred(size, dilation) if padding is None else per_axis("padding", padding)
        return cls(size, per_axis("stride", stride), dilation, padding)

    @property
    def taps(self) -> int:
        """The number of taps."""
        return math.prod(self.size)

    @property
    def places(self) -> list[tuple[int, ...]]:
        """Each tap's index along each axis, in the order of taps."""
        return list(itertools.product(*map(range, self.size)))

    @property
    def mirrors(self) -> bool:
        """Whether tap t of one site and tap -1 - t of another mean the same pair."""
        return (
            all(n % 2 for n in self.size)
            and set(self.stride) == {1}
            and self.padding == centred(self.size, self.dilation)
        )

    def hits(self, axis: int) -> np.ndarray:
        """(stride, slots) taps of an axis by the residue of t dil modulo the stride; -1 for none.

        A fine place reaches coarse ones through these taps alone.
        """
        stride, dilation = self.stride[axis], self.dilation[axis]
        by_residue = [[] for _ in range(stride)]
        for tap in range(self.size[axis]):
            by_residue[tap * dilation % stride].append(tap)
        slots = max(map(len, by_residue))
        return np.array([taps + [-1] * (slots - len(taps)) for taps in by_residue], np.int32)

    def coarse_bounds(self, fine: Bounds) -> Bounds:
        """Where windows lie that see some place of `fine`."""
        lower, upper = [], []
        for low, high, s, pad, reach in self._axes(fine):
            lower.append(-((reach - pad - low) // s))
            upper.append((high - 1 + pad) // s + 1)
        # A stride beyond the window may leave an axis without any output.
        upper = [max(a + 1, b) for a, b in zip(lower, upper, strict=True)]
        return Bounds(fine.batch, tuple(lower), tuple(upper))

    def floor_bounds(self, fine: Bounds) -> Bounds:
        """Where floor(p / stride) lies."""
        axes = list(zip(fine.lower, fine.upper, self.stride, strict=True))
        return Bounds(
            fine.batch,
            tuple(low // s for low, _, s in axes),
            tuple((high - 1) // s + 1 for _, high, s in axes),
        )

    def fine_bounds(self, coarse: Bounds) -> Bounds:
        """Where places lie that windows at places of `coarse` see."""
        axes = list(self._axes(coarse))
        return Bounds(
            coarse.batch,
            tuple(s * low - pad for low, _, s, pad, _ in axes),
            tuple(s * (high - 1) + reach - pad + 1 for _, high, s, pad, reach in axes),
        )

    def _axes(self, bounds):
        reach = [d * (k - 1) for d, k in zip(self.dilation, self.size, strict=True)]
        return zip(bounds.lower, bounds.upper, self.stride, self.padding, reach, strict=True)


def centred(size: Sequence[int], dilation: Sequence[int]) -> tuple[int, ...]:
    """Padding that puts an odd window's middle on the site, an even one's first half."""
    return tuple(d * ((k - 1) // 2) for k, d in zip(size, dilation, strict=True))


def convolved_shape(
    shape: Sequence[int],
    size: PerAxis,
    stride: PerAxis = 1,
    padding: PerAxis = 0,
    dilation: PerAxis = 1,
) -> tuple[int, ...]:
    """The shape that a dense convolution has: floor((n + 2 pad - dil (k - 1) - 1) / s) + 1.

    Example:
      >>> from jaxsparse.activations import convolved_shape
      >>> convolved_shape((7, 6, 8), 3, stride=2, padding=1)
      (4, 3, 4)
    """
    window = Window.of(len(shape), size, stride, dilation, padding)
    columns = zip(shape, window.size, window.stride, window.dilation, window.padding, strict=True)
    return tuple((n + 2 * pad - d * (k - 1) - 1) // s + 1 for n, k, s, d, pad in columns)


def require_int32(low: int, high: int, what: str) -> None:
    """Raises where arithmetic on places could leave int32."""
    if low < -LARGEST - 1 or high > LARGEST:
        raise ValueError(
            f"{what} would need integers from {low} to {high}, beyond int32; narrow the bounds "
            "or give both sides bounds that are near each other."
        )
