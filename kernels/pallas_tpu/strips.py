"""Strips of a matrix of rows by features, as its tiling lays it out in memory."""

import dataclasses
from collections.abc import Callable, Sequence

import jax
from jax.experimental import pallas as pl

from jaxsparse.kernels.pallas_tpu.tiles import Tiling


@dataclasses.dataclass(frozen=True)
class Strips:
    """Cuts x (rows, features), or its transpose, into tiles of rows by strips of features."""

    tiling: Tiling

    @property
    def axis(self) -> int:
        """Of the features."""
        return 0 if self.tiling.by_features else 1

    def shape(self, rows: int, features: int) -> tuple[int, int]:
        """Of a matrix in memory."""
        return (features, rows) if self.tiling.by_features else (rows, features)

    def turn(self, x: jax.Array) -> jax.Array:
        """From rows by features to how it lies in memory, or back."""
        return x.T if self.tiling.by_features else x

    def cut(self, side: int, place: Callable) -> pl.BlockSpec:
        """One tile of rows of one strip: `place` maps a step and its scalars to (rows, strip)."""
        return pl.BlockSpec(
            self.shape(self.tiling.rows, side),
            lambda *step: self.shape(*place(*step)),
        )

    def read(self, refs: Sequence, place: int, strip, side: int) -> jax.Array:
        """The strip for a place of a step: cut out of whole rows if they are held."""
        if not self.tiling.resident:
            return refs[place][...]
        start = pl.multiple_of(strip * side, side)
        window = pl.ds(start, side)
        return refs[0][window, :] if self.axis == 0 else refs[0][:, window]
