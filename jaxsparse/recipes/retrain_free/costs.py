"""What units cost: multiplications counted in the traced program, and tables of latency."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool

from jaxsparse.graph import StructuredGroup
from jaxsparse.graph.analysis.trace import Analysis
from jaxsparse.graph.analysis.values import Record, Walked
from jaxsparse.graph.shrinking.rewrite import Kept
from jaxsparse.trees import Tree


class Multiplications:
    """How many multiplications the products of a program take, with some of its units gone.

    Those of `dot_general` and of convolutions, attention's products of activations among them.
    A `scan` counts for all its turns, a `while`, whose turns nobody knows, for one, a `cond` by
    its dearest branch.

    Args:
      fn, params, inputs, blocks: the model, as in `js.graph.structure`.
      groups: of its units.

    Attributes:
      units: how many each group has, by name.
      inputs: the shapes of the inputs.
    """

    def __init__(
        self,
        fn: Callable[..., Any],
        params: Tree,
        inputs: Sequence[Any],
        groups: Sequence[StructuredGroup],
        blocks: Mapping[str, tuple[int, int]] | None = None,
    ):
        self._analysis = Analysis(fn, params, inputs, blocks, removal=True)
        self._atoms = {group.name: self._atom(group) for group in groups}
        self.units = {group.name: group.units for group in groups}
        self.inputs = jax.tree.map(jnp.shape, inputs)

    def count(self, kept: Mapping[str, Bool[np.ndarray, " units"]] | None = None) -> int:
        """How many are left; groups that are not named are whole."""
        atoms = {self._atoms[name]: units for name, units in (kept or {}).items()}
        return _count(self._analysis.walked, Kept(self._analysis.terms, atoms))

    def of_a_unit(self) -> dict[str, int]:
        """How many go with one unit of a group, all others being there."""
        whole = self.count()
        return {
            name: whole - self.count({name: np.arange(units) > 0})
            for name, units in self.units.items()
        }

    def _atom(self, group: StructuredGroup) -> int:
        member = group.weights[0]
        for piece in self._analysis.terms.pieces(
            self._analysis.leaves[member.path].axes[member.axis]
        ):
            for factor in piece.factors:
                at = piece.offset, factor.stride, factor.size
                if at == (member.offset, member.stride, group.units):
                    return factor.atom
        raise AssertionError(f"{group.name} is of another program")


def _count(walked: Walked, kept: Kept) -> int:
    return sum(_of_record(record, kept) for record in walked.records)


def _of_record(record: Record, kept: Kept) -> int:
    equation, name = record.equation, record.equation.primitive.name
    if record.inner:
        inner = [_count(walked, kept) for walked in record.inner]
        if name == "cond":
            return max(inner)
        return sum(inner) * (equation.params["length"] if name == "scan" else 1)
    if (axes := _multiplied(record)) is None:
        return 0
    return math.prod(int(kept.vector(term).sum()) for term in axes)


def _multiplied(record: Record) -> list[int] | None:
    """The axes over which a product runs, None for what is no product."""
    name, params = record.equation.primitive.name, record.equation.params
    if name == "dot_general":
        (_, summed), (_, batch) = params["dimension_numbers"]
        left, right = record.operands
        rest = (axis for i, axis in enumerate(right.axes) if i not in (*summed, *batch))
        return [*left.axes, *rest]
    if name == "conv_general_dilated":
        _, *summed = params["dimension_numbers"].rhs_spec
        return [*record.results[0].axes, *(record.operands[1].axes[i] for i in summed)]
    return None


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
