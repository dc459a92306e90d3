"""Which channels a program needs: those whose removal would change a sum.

A channel leaves a program where a product, a convolution or a reduction takes its
axis away. If there its slice of one factor is zero it adds nothing, and if that
holds wherever it leaves it may go. So zeros are followed through the program: for
every axis of every array, at which positions the whole slice is surely zero.
Numbers are taken to be finite: 0 * x is 0, and 0 / x too.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import numpy as np
from jaxtyping import Bool

from jaxsparse import jaxprs
from jaxsparse.graph.axes import along, others
from jaxsparse.graph.rules import RULES, common_groups, elementwise, sizes
from jaxsparse.graph.trace import Analysis, Record

Vector = Bool[np.ndarray, " size"]


@dataclasses.dataclass(frozen=True)
class Zeros:
    """What is known of the zeros of an array.

    Attributes:
      axes: for every axis at which positions the slice is zero.
      value: the number that all entries are, None if unknown.
    """

    axes: tuple[Vector, ...]
    value: Any = None

    @classmethod
    def of(cls, axes: Sequence[Vector], value: Any = None) -> Self:
        """All entries are zero as soon as all slices along one axis are."""
        if (value is not None and value == 0) or any(v.size and v.all() for v in axes):
            return cls(tuple(np.ones(v.shape, bool) for v in axes), 0)
        return cls(tuple(axes), value)

    @classmethod
    def nothing(cls, shape: Sequence[int]) -> Self:
        """Nothing is known."""
        return cls(tuple(np.zeros(size, bool) for size in shape))

    @classmethod
    def array(cls, array: Any) -> Self:
        """Zeros of numbers that are there."""
        array = np.asarray(array)
        if array.dtype.kind not in "biufc" and not np.issubdtype(array.dtype, np.number):
            return cls.nothing(array.shape)
        if array.ndim == 0:
            return cls((), array[()])
        other = array != 0
        axes = [~other.any(axis=others(i, array.ndim)) for i in range(array.ndim)]
        same = array.size and bool((array == array.flat[0]).all())
        return cls.of(axes, array.flat[0] if same else None)


def needed(
    analysis: Analysis, leaves: Mapping[str, Zeros], free: Mapping[int, int]
) -> dict[int, Vector]:
    """Which channels of the free atoms a program needs.

    Args:
      analysis: of the program.
      leaves: zeros of the parameters by path.
      free: the atoms in question and their sizes.
    """
    walk = _Walk(analysis, free)
    arguments = analysis.program.jaxpr.invars
    inputs = [Zeros.nothing(sizes(v)) for v in arguments[len(analysis.leaves) :]]
    operands = [*(leaves[path] for path in analysis.leaves), *inputs]
    walk.run(analysis.program.jaxpr, analysis.program.consts, operands, analysis.records)
    return walk.needed


class _Walk:
    def __init__(self, analysis, free):
        self.terms = analysis.terms
        self.needed = {atom: np.zeros(size, bool) for atom, size in free.items()}
        self.noting = True

    def run(self, jaxpr, consts, operands, records: Sequence[Record]) -> list[Zeros]:
        queue = iter(records)

        def visit(equation, operands):
            return self.visit(equation, [_lift(o) for o in operands], next(queue))

        results = jaxprs.walk(jaxpr, [Zeros.array(c) for c in consts], operands, visit)
        return [_lift(result) for result in results]

    def visit(self, equation, operands, record):
        name = equation.primitive.name
        if inner := jaxprs.inner_program(equation):
            return self.run(*inner, operands, record.inner[0])
        if name in ("scan", "while", "cond"):
            return getattr(self, f"_{name}")(equation, operands, record)
        if (rule := _RULES.get(name)) is not None:
            return rule(self, equation, operands, record)
        if RULES.get(name) is elementwise:
            return [_elementwise(equation, operands)]
        return [Zeros.nothing(sizes(variable)) for variable in equation.outvars]

    def need(self, term: int, adds: Vector) -> None:
        """Notes that the positions where `adds` is True are needed."""
        if not self.noting or not adds.any():
            return
        for piece in self.terms.pieces(term):
            grid = piece.grid()
            for i, (atom, _, _) in enumerate(piece.factors):
                if atom in self.needed:
                    self.needed[atom] |= adds[grid].any(axis=others(i, grid.ndim))

    def _scan(self, equation, operands, record):
        consts, carry, stacked = jaxprs.split_scan(equation, operands)
        body = jaxprs.open_jaxpr(equation.params["jaxpr"])
        slices = [Zeros.of(z.axes[1:], z.value) for z in stacked]

        def step(carry):
            return self.run(*body, [*consts, *carry, *slices], record.inner[0])

        carry = self._settle(step, carry)
        results = step(carry)
        lead = np.zeros(equation.params["length"], bool)
        stacks = [Zeros.of((lead, *z.axes), z.value) for z in results[len(carry) :]]
        return [*carry, *stacks]

    def _while(self, equation, operands, record):
        cond_consts, body_consts, carry = jaxprs.split_while(equation, operands)
        cond = jaxprs.open_jaxpr(equation.params["cond_jaxpr"])
        body = jaxprs.open_jaxpr(equation.params["body_jaxpr"])

        def step(carry):
            return self.run(*body, [*body_consts, *carry], record.inner[1])

        carry = self._settle(step, carry)
        self.run(*cond, [*cond_consts, *carry], record.inner[0])
        step(carry)
        return carry

    def _settle(self, step: Callable[[list[Zeros]], list[Zeros]], carry: list[Zeros]):
        """What holds of the carry in every round: what one more round leaves true."""
        noting, self.noting = self.noting, False
        while True:
            results = step(carry)
            joined = [_either(a, b) for a, b in zip(carry, results, strict=False)]
            if all(_equal(a, b) for a, b in zip(joined, carry, strict=True)):
                self.noting = noting
                return carry
            carry = joined

    def _cond(self, equation, operands, record):
        results = [
            self.run(*jaxprs.open_jaxpr(branch), operands[1:], inner)
            for branch, inner in zip(equation.params["branches"], record.inner, strict=True)
        ]
        joined = results[0]
        for other in results[1:]:
            joined = [_either(a, b) for a, b in zip(joined, other, strict=True)]
        return joined


def _lift(operand):
    return operand if isinstance(operand, Zeros) else Zeros.array(operand)


def _either(a, b):
    """What is known of an array that is one or the other."""
    same = a.value if a.value is not None and b.value is not None and a.value == b.value else None
    return Zeros(tuple(x & y for x, y in zip(a.axes, b.axes, strict=True)), same)


def _equal(a, b):
    same = (a.value is None) == (b.value is None)
    return same and all(np.array_equal(x, y) for x, y in zip(a.axes, b.axes, strict=True))


def _elementwise(equation, operands):
    shape, name = sizes(equation.outvars[0]), equation.primitive.name
    spread = [_spread(zeros, shape) for zeros in operands]
    if all(zeros.value is not None for zeros in operands):
        value = np.asarray(_evaluate(equation, [zeros.value for zeros in operands]))
        return Zeros.of([np.zeros(size, bool) for size in shape], value[()])
    if name in ("mul", "and"):
        return Zeros.of([np.logical_or.reduce(vectors) for vectors in zip(*spread, strict=True)])
    if name == "div":
        return Zeros.of(spread[0])
    if name == "select_n":
        cases = spread[1:]
        return Zeros.of([np.logical_and.reduce(vectors) for vectors in zip(*cases, strict=True)])
    unknown = [v for v, zeros in zip(spread, operands, strict=True) if zeros.value is None]
    at_zero = _evaluate(equation, [0 if z.value is None else z.value for z in operands])
    if not np.asarray(at_zero == 0).all():
        return Zeros.nothing(shape)
    return Zeros.of([np.logical_and.reduce(vectors) for vectors in zip(*unknown, strict=True)])


def _evaluate(equation, numbers):
    """The primitive on single numbers."""
    dtypes = [variable.aval.dtype for variable in equation.invars]
    scalars = [np.asarray(x).astype(dtype) for x, dtype in zip(numbers, dtypes, strict=True)]
    return np.asarray(jaxprs.bind(equation, scalars)[0])


def _spread(zeros, shape):
    """Vectors of an operand as broadcast to a shape."""
    if not zeros.axes:
        everywhere = zeros.value is not None and zeros.value == 0
        return [np.full(size, everywhere) for size in shape]
    return [
        np.broadcast_to(vector, size) if vector.size == 1 else vector
        for vector, size in zip(zeros.axes, shape, strict=True)
    ]


# One rule a primitive: (walk, equation, operands, record) -> results.


def _dot_general(walk, equation, operands, record):
    left, right = operands
    (left_sum, right_sum), (left_batch, right_batch) = equation.params["dimension_numbers"]
    for i, k in zip(left_sum, right_sum, strict=True):
        walk.need(record.operands[0].axes[i], ~(left.axes[i] | right.axes[k]))
    batch = [left.axes[i] | right.axes[k] for i, k in zip(left_batch, right_batch, strict=True)]
    free = [v for i, v in enumerate(left.axes) if i not in (*left_sum, *left_batch)]
    free += [v for i, v in enumerate(right.axes) if i not in (*right_sum, *right_batch)]
    zero = left.value == 0 or right.value == 0
    return [Zeros.of([*batch, *free], 0 if zero else None)]


def _conv_general_dilated(walk, equation, operands, record):
    x, kernel = operands
    params = equation.params
    shape = sizes(equation.outvars[0])
    if params["batch_group_count"] != 1:
        return [Zeros.nothing(shape)]
    numbers, groups = params["dimension_numbers"], params["feature_group_count"]
    into, outof = numbers.lhs_spec[1], numbers.rhs_spec[0]
    out_by_group = kernel.axes[outof].reshape(groups, -1)
    in_by_group = x.axes[into].reshape(groups, -1)
    kernel_in = kernel.axes[numbers.rhs_spec[1]]
    nothing_out = out_by_group.all(axis=1)
    adds = ~(in_by_group | kernel_in | nothing_out[:, None])
    walk.need(record.operands[0].axes[into], adds.ravel())
    nothing_in = in_by_group.all(axis=1)
    axes = [np.zeros(size, bool) for size in shape]
    axes[numbers.out_spec[0]] = x.axes[numbers.lhs_spec[0]]
    axes[numbers.out_spec[1]] = (out_by_group | nothing_in[:, None]).ravel()
    return [Zeros.of(axes)]


def _reduce_sum(walk, equation, operands, record):
    (zeros,), gone = operands, equation.params["axes"]
    for i in gone:
        walk.need(record.operands[0].axes[i], ~zeros.axes[i])
    return [Zeros.of([v for i, v in enumerate(zeros.axes) if i not in gone], _zero(zeros))]


def _reduce_other(walk, equation, operands, record):
    """The largest of some numbers may well be one of the zeros."""
    params = equation.params
    gone = params["axes"] if "axes" in params else params["dimensions"]
    for value in record.operands[: len(equation.outvars)]:
        for i in gone:
            walk.need(value.axes[i], np.ones(walk.terms.size(value.axes[i]), bool))
    if equation.primitive.name not in ("reduce_max", "reduce_min", "reduce_prod"):
        return [Zeros.nothing(sizes(variable)) for variable in equation.outvars]
    (zeros,) = operands
    return [Zeros.of([v for i, v in enumerate(zeros.axes) if i not in gone], _zero(zeros))]


def _zero(zeros):
    return 0 if zeros.value is not None and zeros.value == 0 else None


def _broadcast_in_dim(walk, equation, operands, record):
    del walk, record
    zeros, shape = operands[0], sizes(equation.outvars[0])
    axes = [np.zeros(size, bool) for size in shape]
    for vector, target in zip(zeros.axes, equation.params["broadcast_dimensions"], strict=True):
        axes[target] = np.broadcast_to(vector, shape[target]) if vector.size == 1 else vector
    return [Zeros.of(axes, zeros.value)]


def _transpose(walk, equation, operands, record):
    del walk, record
    (zeros,) = operands
    return [Zeros.of([zeros.axes[i] for i in equation.params["permutation"]], zeros.value)]


def _squeeze(walk, equation, operands, record):
    del walk, record
    (zeros,) = operands
    gone = [i % max(len(zeros.axes), 1) for i in equation.params["dimensions"]]
    return [Zeros.of([v for i, v in enumerate(zeros.axes) if i not in gone], zeros.value)]


def _reshape(walk, equation, operands, record):
    del walk, record
    zeros, before, after = operands[0], sizes(equation.invars[0]), sizes(equation.outvars[0])
    axes = [np.zeros(size, bool) for size in after]
    if 0 in after or equation.params["dimensions"] is not None:
        return [Zeros.nothing(after)]
    for old, new in common_groups(before, after):
        if not any(zeros.axes[i].any() for i in old):
            continue
        grid = np.zeros([before[i] for i in old], bool)
        for k, i in enumerate(old):
            grid |= along(k, len(old), zeros.axes[i])
        grid = grid.reshape([after[i] for i in new])
        for k, i in enumerate(new):
            axes[i] = grid.all(axis=others(k, len(new)))
    return [Zeros.of(axes, zeros.value)]


def _concatenate(walk, equation, operands, record):
    del walk, record
    dimension = equation.params["dimension"]
    axes = []
    for i in range(len(operands[0].axes)):
        vectors = [zeros.axes[i] for zeros in operands]
        axes.append(np.concatenate(vectors) if i == dimension else np.logical_and.reduce(vectors))
    return [Zeros.of(axes)]


def _split(walk, equation, operands, record):
    del walk, record
    (zeros,), axis = operands, equation.params["axis"]
    results, start = [], 0
    for size in equation.params["sizes"]:
        axes = list(zeros.axes)
        axes[axis] = axes[axis][start : start + size]
        results.append(Zeros.of(axes, zeros.value))
        start += size
    return results


def _slice(walk, equation, operands, record):
    del walk, record
    (zeros,), params = operands, equation.params
    strides = params["strides"] or [1] * len(zeros.axes)
    spans = zip(params["start_indices"], params["limit_indices"], strides, strict=True)
    axes = [v[a:b:s] for v, (a, b, s) in zip(zeros.axes, spans, strict=True)]
    return [Zeros.of(axes, zeros.value)]


def _pad(walk, equation, operands, record):
    del walk, record
    zeros, filling = operands
    axes = []
    filled = filling.value is not None and filling.value == 0
    for vector, (low, high, interior) in zip(
        zeros.axes, equation.params["padding_config"], strict=True
    ):
        if interior or low < 0 or high < 0:
            return [Zeros.nothing(sizes(equation.outvars[0]))]
        if (low or high) and not filled:
            axes.append(np.concatenate([np.zeros(low, bool), vector, np.zeros(high, bool)]))
        else:
            axes.append(np.concatenate([np.ones(low, bool), vector, np.ones(high, bool)]))
    if not filled:  # a slice that was zero may now be padded with something else
        padded = [i for i, c in enumerate(equation.params["padding_config"]) if any(c[:2])]
        axes = [v if padded == [i] or not padded else np.zeros_like(v) for i, v in enumerate(axes)]
    return [Zeros.of(axes)]


def _gather(walk, equation, operands, record):
    del walk
    result = record.results[0]
    axes = [np.zeros(size, bool) for size in sizes(equation.outvars[0])]
    numbers, taken = equation.params["dimension_numbers"], equation.params["slice_sizes"]
    fill = equation.params["fill_value"]
    if fill is not None and np.isfinite(fill) and fill != 0:
        return [Zeros.of(axes)]
    gone = (*numbers.collapsed_slice_dims, *numbers.operand_batching_dims)
    whole = [i for i in range(len(operands[0].axes)) if i not in gone]
    for i, target in zip(whole, numbers.offset_dims, strict=True):
        if (
            taken[i] == len(operands[0].axes[i])
            and result.axes[target] == record.operands[0].axes[i]
        ):
            axes[target] = operands[0].axes[i]
    return [Zeros.of(axes)]


def _dynamic_slice(walk, equation, operands, record):
    del walk, record
    zeros, taken = operands[0], equation.params["slice_sizes"]
    axes = [v if v.size == n else np.zeros(n, bool) for v, n in zip(zeros.axes, taken, strict=True)]
    return [Zeros.of(axes, zeros.value)]


def _reduce_window(walk, equation, operands, record):
    """Pooling leaves what is zero along other axes zero."""
    del walk
    kept = [
        vector if a == b else np.zeros(size, bool)
        for vector, size, a, b in zip(
            operands[0].axes,
            sizes(equation.outvars[0]),
            record.operands[0].axes,
            record.results[0].axes,
            strict=True,
        )
    ]
    return [Zeros.of(kept)]


def _identity(walk, equation, operands, record):
    del walk, equation, record
    return operands


_RULES = {
    "dot_general": _dot_general,
    "conv_general_dilated": _conv_general_dilated,
    "reduce_sum": _reduce_sum,
    **dict.fromkeys(
        ["reduce_max", "reduce_min", "reduce_prod", "reduce_and", "reduce_or", "reduce_xor"],
        _reduce_other,
    ),
    **dict.fromkeys(["reduce", "argmax", "argmin"], _reduce_other),
    "broadcast_in_dim": _broadcast_in_dim,
    "transpose": _transpose,
    "squeeze": _squeeze,
    "reshape": _reshape,
    "concatenate": _concatenate,
    "split": _split,
    "slice": _slice,
    "pad": _pad,
    "gather": _gather,
    "dynamic_slice": _dynamic_slice,
    "reduce_window_sum": _reduce_window,
    "reduce_window_max": _reduce_window,
    "reduce_window_min": _reduce_window,
    **dict.fromkeys(
        ["optimization_barrier", "sharding_constraint", "reshard", "device_put"], _identity
    ),
}
