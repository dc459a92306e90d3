"""Single weights by input: the columns of the transposed matrix."""

import dataclasses

from jaxsparse.kernels.layouts.base import Layout
from jaxsparse.kernels.layouts.blocks import CSCLayout


@dataclasses.dataclass(frozen=True)
class CSRLayout(Layout):
    """Single weights, ordered by row, then by column: the arrays of `CSCLayout` for Wᵀ."""

    nnz: int

    @property
    def values_shape(self) -> tuple[int]:
        return (self.nnz,)

    @property
    def index_shapes(self) -> tuple[tuple[int, ...], ...]:
        return self._turned.index_shapes

    def todense(self, values, *index):
        return self._turned.todense(values, *index).T

    def gather(self, dense, *index):
        return self._turned.gather(dense.T, *index)

    def sampled(self, x, g, *index, to):
        return self._turned.sampled(g, x, *index, to=to)

    def take_outputs(self, values, *index, ids):
        return self._turned.take_inputs(values, *index, ids=ids)

    def take_inputs(self, values, *index, ids):
        return self._turned.take_outputs(values, *index, ids=ids)

    @property
    def _turned(self) -> CSCLayout:
        inputs, outputs = self.shape
        return CSCLayout((outputs, inputs), self.nnz)
