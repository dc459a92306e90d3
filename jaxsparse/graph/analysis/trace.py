"""The analysis: a function is traced and its program walked, equation by equation."""

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.interpreters import partial_eval

from jaxsparse import control, jaxprs
from jaxsparse.graph.analysis import rules  # noqa: F401  enters the rules of all primitives
from jaxsparse.graph.analysis.axes import Terms
from jaxsparse.graph.analysis.blocks import declare, hold
from jaxsparse.graph.analysis.pieces import Cause
from jaxsparse.graph.analysis.registry import CHANNELS, sizes
from jaxsparse.graph.analysis.symbolic import StandIns
from jaxsparse.graph.analysis.uniform import still_uniform, uniform_axes
from jaxsparse.graph.analysis.values import Op, Record, Value, Walked
from jaxsparse.products.reading import Product, Reader, evaluate
from jaxsparse.trees import Tree, leaves_by_path, replace_by_path


def arrays_by_path(tree: Tree) -> dict[str, Any]:
    """The leaves that are numbers; functions and flags in a tree are constants of its program."""
    return {path: leaf for path, leaf in leaves_by_path(tree).items() if _is_number(leaf)}


def _is_number(leaf: Any) -> bool:
    if isinstance(leaf, bool):
        return False
    return hasattr(leaf, "dtype") or isinstance(leaf, complex | float | int)


class Analysis:
    """Walks a traced program and unifies the axes of its arrays.

    Args:
      fn, params, inputs, blocks: as in `channels`.
      removal: whether channels are to go, rather than to change places. What tells them
        apart by a number of its own (a constant, a random number) can be cut, but not
        permuted: it stays where it is, and is pinned, unless this is True.
      keep: as in `shrink`.

    Attributes:
      terms: of all axes.
      leaves: by path a Value for every leaf of the parameters.
      shapes: by path.
      inputs: shapes of the other arguments.
      products: those that leaves take part in, by the id of their equation.
      ops: for the picture.
      program: traced; its arguments are the leaves, then the inputs.
      walked: its equations and results, as they were visited.
      output_tree: structure of what the function returns.
    """

    def __init__(
        self,
        fn: Callable[..., Any],
        params: Tree,
        inputs: Sequence[Any],
        blocks: Mapping[str, tuple[int, int]] | None = None,
        removal: bool = False,
        keep: Iterable[str] = (),
    ):
        self.removal = removal
        leaves = arrays_by_path(params)

        def call(given):
            return fn(replace_by_path(params, dict(zip(leaves, given[0], strict=True))), *given[1])

        # Shapes without shardings: with explicit axes the types would name the mesh.
        arrays = jax.eval_shape(lambda *arrays: arrays, list(leaves.values()), list(inputs))
        arrays, tree = jax.tree.flatten(jax.tree.map(_unsharded, arrays))
        self.program, self.output_tree = jaxprs.trace(call, tree, arrays, dict(enumerate(arrays)))
        variables = self.program[0].invars
        self.terms = Terms()
        self.ops: list[Op] = []
        self._now: Any = None
        self._repeat = 1
        self._stand_ins = StandIns(variable.aval.shape for variable in variables)
        arguments = [self._stand_ins.variable(variable) for variable in variables]
        self.shapes = {
            path: sizes(v) for path, v in zip(leaves, arguments[: len(leaves)], strict=True)
        }
        self.leaves = {path: self._leaf(path, shape) for path, shape in self.shapes.items()}
        declare(blocks or {}, self.shapes, self.leaves, self.terms)
        hold(keep, self.leaves, self.terms)
        self._pin_unused()
        self.inputs = [sizes(variable) for variable in arguments[len(leaves) :]]
        self.products = self._products()
        given = [self._input(shape) for shape in self.inputs]
        self.walked = self._walk(self.program, [*self.leaves.values(), *given])
        for result in self.walked.results:
            self._output(result)

    # What rules call.

    def unify(self, a: int, b: int, reason: str = "joins axes that are built differently") -> None:
        """Unifies two terms on behalf of the equation that is visited."""
        self.terms.unify(a, b, self._cause(reason))

    def unify_all(self, a: Iterable[int], b: Iterable[int]) -> None:
        """Unifies the axes of two arrays pairwise."""
        for one, other in zip(a, b, strict=True):
            self.unify(one, other)

    def pin(self, term: int, reason: str) -> None:
        """Pins a term on behalf of the equation that is visited."""
        if self.terms.size(term) != 1 and self.terms.cause(term) is None:
            self._now.reasons.append(reason)
        self.terms.pin(term, self._cause(reason))

    def pinned(self, size: int, reason: str) -> int:
        """A new axis that is pinned."""
        term = self.terms.atom(size)
        self.terms.pin(term, self._cause(reason))
        return term

    def told_apart(self, size: int, reason: str) -> int:
        """A new axis whose channels may go, but not change places."""
        return self.terms.atom(size) if self.removal else self.pinned(size, reason)

    def unknown(self, equation, operands: Iterable[Iterable[int]], reason: str) -> list[list[int]]:
        """Pins all that an equation touches."""
        for axis in itertools.chain.from_iterable(operands):
            self.pin(axis, reason)
        return [[self.pinned(n, reason) for n in sizes(variable)] for variable in equation.outvars]

    # The walk.

    def _walk(self, program, operands) -> Walked:
        records: list[Record] = []

        def visit(equation, operands):
            numbered = self._stand_ins.equation(equation)
            values = tuple(self._used(self._value(operand)) for operand in operands)
            results, inner = self._visit(numbered, values, self.products.get(id(equation), ()))
            records.append(Record(numbered, values, tuple(results), tuple(inner)))
            return results

        jaxpr, consts = program
        results = jaxprs.walk((jaxpr, [self._constant(c) for c in consts]), operands, visit)
        return Walked(tuple(self._value(result) for result in results), tuple(records))

    def _visit(self, equation, operands, products):
        if programs := jaxprs.programs(equation):
            return self._control(equation, operands, programs)
        data = any(value.ops for value in operands)
        self._now = _Now(equation, len(self.ops) if data else None)
        axes = [value.axes for value in operands]
        if rule := CHANNELS.get(equation.primitive.name):
            found = rule(self, equation, *axes)
        else:
            found = self.unknown(equation, axes, "is not understood")
        weights = frozenset().union(*(value.weights for value in operands if not value.ops))
        if not data:
            uniform = () if weights else still_uniform(equation, operands)
            return [Value(tuple(axes), frozenset(), weights, uniform) for axes in found], ()
        results = [Value(tuple(axes), frozenset([len(self.ops)])) for axes in found]
        self.ops.append(self._op(equation, operands, results, products))
        return results, ()

    def _op(self, equation, operands, results, products):
        def terms(axes):
            return tuple(self.leaves[p.path].axes[axis] for p in products for axis in axes(p))

        through = tuple(axis for result in results for axis in result.axes)
        weights = dict.fromkeys(p for v in operands if not v.ops for p in sorted(v.weights))
        return Op(
            len(self.ops),
            equation.primitive.name,
            str(equation.source_info.name_stack),
            tuple(weights),
            tuple(sorted(frozenset().union(*(value.ops for value in operands)))),
            sizes(equation.outvars[0]) if equation.outvars else (),
            products[0].shape if products else None,
            terms(lambda product: product.in_axis),
            terms(lambda product: product.out_axis) if products else through,
            self._repeat,
            tuple(dict.fromkeys(self._now.reasons)),
        )

    # Control flow: what `control.interpret` asks.

    def _control(self, equation, operands, programs):
        inner: list[Any] = [None] * len(programs)
        times = equation.params["length"] if equation.primitive.name == "scan" else 1

        def run(number, operands):
            self._repeat *= times
            inner[number] = self._walk(programs[number], operands)
            self._repeat //= max(times, 1)
            self._now = _Now(equation, None)
            return inner[number].results

        self._now = _Now(equation, None)
        if equation.primitive.name in jaxprs.CONTROL:
            # What is the same everywhere at first may be told apart in another turn.
            operands = [dataclasses.replace(value, uniform=()) for value in operands]
        results = control.interpret(equation, operands, run, self)
        if equation.primitive.name == "cond":
            ops = operands[0].ops
            results = [dataclasses.replace(value, ops=value.ops | ops) for value in results]
        return results, inner

    def join(self, values, others):
        """One value for two that may stand at the same place."""
        joined = []
        for value, other in zip(values, others, strict=True):
            self.unify_all(value.axes, other.axes)
            ops, weights = value.ops | other.ops, value.weights | other.weights
            joined.append(Value(value.axes, ops, weights))
        return joined

    def settle(self, step, carry):
        """What it was at first: one turn, and `join`, make all others agree."""
        del step
        return carry

    def slice(self, value):
        """What `scan` takes apart along the first axis."""
        self.pin(value.axes[0], "takes the axis apart, step by step")
        return dataclasses.replace(value, axes=value.axes[1:])

    def stack(self, value, length):
        """What `scan` puts together along a new first axis."""
        lead = self.pinned(length, "puts the axis together, step by step")
        return dataclasses.replace(value, axes=(lead, *value.axes))

    # Values that come from nowhere.

    def _leaf(self, path, shape):
        axes = tuple(self.terms.atom(size) for size in shape)
        for axis, size in zip(axes, shape, strict=True):
            if not size:
                self.terms.pin(axis, Cause("empty", "has no channels"))
        return Value(axes, frozenset(), frozenset([path]))

    def _products(self):
        """What products make of the leaves, from the axes as they are traced."""
        reader, names = Reader(), [*self.leaves, *[None] * len(self.inputs)]
        arrays = [variable.aval for variable in self.program[0].invars]
        jax.eval_shape(lambda *arrays: evaluate(self.program, reader, names, arrays), *arrays)
        found: dict[int, list[Product]] = {}
        for (equation, _), product in reader.found.items():
            if product.sums:
                found.setdefault(equation, []).append(product)
        return found

    def _pin_unused(self):
        """What this function does not read, another function of the same weights may."""
        jaxpr, _ = self.program
        _, used = partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
        for value, is_used in zip(self.leaves.values(), used[: len(self.leaves)], strict=True):
            if not is_used:
                for axis in value.axes:
                    self.terms.pin(axis, Cause("unused", "is not used by the function"))

    def _input(self, shape):
        op = len(self.ops)
        cause = Cause("input", "is an input of the function", op)
        axes = tuple(self.terms.atom(size) for size in shape)
        for axis in axes:
            self.terms.pin(axis, cause)
        self.ops.append(Op(op, "input", "", (), (), shape, groups_out=axes))
        return Value(axes, frozenset([op]))

    def _output(self, value):
        op = len(self.ops)
        for axis in value.axes:
            self.terms.pin(axis, Cause("output", "is an output of the function", op))
        shape = tuple(self.terms.size(axis) for axis in value.axes)
        inputs = tuple(sorted(value.ops))
        self.ops.append(Op(op, "output", "", (), inputs, shape, groups_out=value.axes))

    def _value(self, operand):
        return operand if isinstance(operand, Value) else self._constant(operand)

    def _constant(self, constant):
        axes = tuple(self.terms.atom(size) for size in np.shape(constant))
        uniform = tuple(uniform_axes(constant)) if axes else ()
        for axis, same in zip(axes, uniform, strict=True):
            if not same and not self.removal:
                self.terms.pin(axis, Cause("constant", "is told apart by a constant"))
        return Value(axes, uniform=uniform)

    def _used(self, value):
        """The value as one equation takes it: axes that tell nothing apart are new ones."""
        if not any(value.uniform):
            return value
        fresh = zip(value.axes, value.uniform, strict=True)
        axes = tuple(self.terms.atom(self.terms.size(a)) if u else a for a, u in fresh)
        return dataclasses.replace(value, axes=axes)

    def _cause(self, reason):
        return Cause(self._now.equation.primitive.name, reason, self._now.op)


class _Now:
    """What is found out while one equation is visited."""

    def __init__(self, equation, op):
        self.equation, self.op = equation, op
        self.reasons: list[str] = []


def _unsharded(array: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(array.shape, array.dtype, weak_type=array.weak_type)
