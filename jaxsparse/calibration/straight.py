"""A traced program as one straight line of steps, and which of them named weights meet data in.

Calls (`jit`, `remat`, functions with gradients of their own) are opened. A `scan` over stacked
kernels becomes its turns, so that the layers of a stack stand one after another and each of its
kernels has its place in the line. Any other loop or branch is one step.
"""

import dataclasses
from collections.abc import Callable, Collection, Hashable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxsparse import jaxprs
from jaxsparse.calibration import sameness
from jaxsparse.calibration.site import Site, note, site_of, with_mixed
from jaxsparse.calibration.steps import Join, Pick, Ref, Step, Use
from jaxsparse.calibration.turned import Turned
from jaxsparse.products.altering import value_of
from jaxsparse.products.reading import Reader, Traced, is_array
from jaxsparse.products.sights import Sight, Value
from jaxsparse.trees import Tree

_LOOPS = ("scan", "while")
_CASTS = ("convert_element_type", "copy", "reshape", "squeeze", "transpose")
_SMALL = 16  # numbers of an index that is worked out beforehand
CALLER = ("prune_oneshot", "a rule that leaves it out")


class Line(Reader):
    """A traced program in steps.

    Attributes:
      steps: in order.
      arguments: the variable of every array of the trace.
      constants: arrays by variable.
      data: variables that depend on the batch.
      sites: of the named weights.
      untold: by path why it cannot be told what a named weight meets.
    """

    def __init__(self, traced: Traced, named: Collection[str]):
        super().__init__()
        self._named, self._values, self._depth = named, dict[Ref, Any](), 0
        self._uses, self._counted = list[Use](), False
        self._now: tuple[Any, Sequence[Any]] = None, ()
        self._casts: dict[Hashable, tuple[Ref, ...]] = {}
        self.steps, self.constants = list[Step](), dict[Ref, Any]()
        self.sites, self.untold = dict[Site, Site](), dict[str, ValueError]()
        self.data, self.arguments = set[Ref](), list[Ref]()

        def follow(*arrays):
            pairs = zip(traced.names, arrays, strict=True)
            self.arguments = [
                self._new(Value(a, data=True) if n is None else Value(a, (Sight.of(n, a.shape),)))
                for n, a in pairs
            ]
            self._opened(traced.program, self.arguments)
            self._values.clear()  # tracers
            return ()

        jax.eval_shape(follow, *traced.shapes)
        self.sites = with_mixed(self.sites.values(), self)

    def form(self, path: str) -> tuple[tuple[int, ...], ...]:
        """Shape and axes of a named weight, as its products have it."""
        [site] = [site for site in self.sites if site.path == path]
        return site.shape, site.in_axis, site.batch_axis

    @property
    def outline(self) -> list[Any]:
        """Equal where two programs have the same steps, of whatever shapes."""
        return [
            (
                type(step.equation).__name__,
                getattr(step.equation, "primitive", None),
                [o if isinstance(o, Ref) else None for o in step.operands],
                step.results,
                step.moves,
                [(use.path, use.index) for use in step.uses],
            )
            for step in self.steps
        ]

    def _new(self, value: Any) -> Ref:
        ref = Ref(len(self._values))
        self._values[ref] = value
        if isinstance(value, Value) and value.data:
            self.data.add(ref)
        return ref

    def _constant(self, array: Any) -> Ref:
        ref = self._new(array)
        self.constants[ref] = array
        return ref

    def _opened(self, program: jaxprs.Program, operands: Sequence[Any]) -> list[Any]:
        jaxpr, consts = program
        return jaxprs.walk((jaxpr, [self._constant(c) for c in consts]), operands, self._step)

    def _step(self, equation, operands: Sequence[Any]) -> Sequence[Any]:
        """The variables, or literals, that an equation returns."""
        name, inner = equation.primitive.name, jaxprs.programs(equation)
        if inner and name not in jaxprs.CONTROL:
            return self._opened(inner[0], operands)
        known = () if inner else self._worked_out(equation, operands)
        if known:
            return known
        if name == "scan" and self._takes_slices(equation, operands):
            return self._turns(equation, operands)
        key = sameness.of_equation(equation)
        cast = (key, *operands) if name in _CASTS and isinstance(operands[0], Ref) else None
        if cast in self._casts:
            return self._casts[cast]
        found = self._add(equation, operands, key)
        if found is None:
            return self._turns(equation, operands)
        if cast is not None:
            # Layers that share an input often cast or reshape it each on their own.
            self._casts[cast] = found
        return found

    def _worked_out(self, equation, operands) -> list[Ref]:
        """Small integers that follow from nothing but constants: which turn of a loop it is."""
        values = [self.constants.get(o, o) if isinstance(o, Ref) else o for o in operands]
        whole = all(
            jnp.issubdtype(v.aval.dtype, jnp.integer) or v.aval.dtype == bool
            for v in equation.outvars
        )
        small = all(v.aval.size <= _SMALL for v in equation.outvars if whole)
        if not values or any(isinstance(v, Ref) for v in values) or not whole or not small:
            return []
        if equation.effects or max(map(np.size, values)) > _SMALL:
            return []
        with jax.ensure_compile_time_eval():
            return [self._constant(np.asarray(a)[()]) for a in jaxprs.bind(equation, values)]

    def _takes_slices(self, equation, operands) -> bool:
        """Whether a `scan` goes through slices of named weights."""
        stacked = jaxprs.split_loop(equation, operands)[-1]
        values = [value_of(self._values[o]) for o in stacked if isinstance(o, Ref)]
        return any(sight.path in self._named for value in values for sight in value.sights)

    def _turns(self, equation, operands) -> list[Any]:
        """A `scan`, turn by turn."""
        _, consts, carry, stacked = jaxprs.split_loop(equation, operands)
        [body] = jaxprs.programs(equation)
        # The first turn is like any other, so that it is compiled with them.
        carry = [o if isinstance(o, Ref) else self._constant(np.asarray(o)[()]) for o in carry]
        returned: dict[int, list[Any]] = {}
        turns = list(range(equation.params["length"]))
        for turn in reversed(turns) if equation.params["reverse"] else turns:
            slices = []
            for operand in stacked:
                at = self._constant(np.int32(turn))
                slices += self._add(Pick(), (operand, at), Pick.key) or ()
            results = self._opened(body, [*consts, *carry, *slices])
            carry, returned[turn] = results[: len(carry)], results[len(carry) :]
        joined = []
        for place, variable in enumerate(equation.outvars[len(carry) :]):
            join = Join(variable.aval.dtype)
            joined += self._add(join, tuple(returned[t][place] for t in turns), join.key) or ()
        return [*carry, *joined]

    def _add(self, equation, operands, key) -> tuple[Ref, ...] | None:
        """Appends a step; None where its kernels are those of the turns of a loop."""
        self._uses, self._counted, self._now = [], False, (equation, operands)
        step = Step(equation, tuple(operands), (), False, (), key)
        values = [self._values[o] if isinstance(o, Ref) else o for o in operands]
        results = step.run(self, values)
        if self._counted:
            return None
        moves = bool(self._uses) or any(isinstance(r, Value) and r.data for r in results)
        refs, uses = tuple(map(self._new, results)), tuple(dict.fromkeys(self._uses))
        self.steps.append(dataclasses.replace(step, results=refs, moves=moves, uses=uses))
        return refs

    def visit(self, equation, operands):
        loop = equation.primitive.name in _LOOPS
        self._depth += loop
        results = super().visit(equation, operands)
        self._depth -= loop
        return results

    def meet(self, equation, sight, position, other):
        super().meet(equation, sight, position, other)
        path = sight.path
        if path not in self._named:
            return
        site = site_of(equation, sight, position)
        note(self.sites, site)
        try:
            turned = Turned(site, equation, sight, position, other, CALLER)
            if jnp.iscomplexobj(turned.array):
                raise ValueError(
                    f"prune_oneshot: {path!r} of shape {site.shape} meets {turned.array.dtype}, "
                    "and statistics are of real numbers alone; a rule that leaves it out would work"
                )
        except ValueError as error:  # what else is wrong with it is said first
            self.untold.setdefault(path, error)
            return
        index = tuple(place if isinstance(place, int) else None for place in turned.index)
        if any(i is not None and not 0 <= i < n for i, n in zip(index, site.kernels, strict=True)):
            return  # past the end there is no kernel
        now, operands = self._now
        if any(not isinstance(place, int | slice) for place in turned.index):
            # Which kernel it is, the turn of this very loop may say.
            self._counted |= self._depth == 1 and now.primitive.name == "scan"
        other = operands[1 - position] if now is equation else None
        met = (other, turned.way) if isinstance(other, Ref) else None
        self._uses.append(Use(path, index, met, turned.count))


def _arrays(outputs: Any) -> list[Any]:
    """Those of what a model returns, which may hold texts and settings, too."""
    return [leaf for leaf in jax.tree.leaves(outputs) if is_array(leaf)]


def lines_of(
    fn: Callable[..., Any], params: Tree, batches: Sequence[tuple[Any, ...]], named: Collection[str]
) -> tuple[Traced, list[Line], list[tuple[int, list[Any]]]]:
    """The lines of a function for batches of one shape, or of several.

    Returns:
      The trace for the first batch; a line for every shape that batches have; and by batch the
      number of its line and its arrays.

    Raises:
      ValueError: for batches of another shape it is another program.
    """
    numbers: dict[Hashable, int] = {}
    found: list[tuple[Traced, Line]] = []
    data = []
    for place, batch in enumerate(batches):
        leaves, tree = jax.tree.flatten(batch)
        form = (
            tree,
            tuple(
                (leaf.shape, str(leaf.dtype)) if is_array(leaf) else sameness.of_value(leaf)
                for leaf in leaves
            ),
        )
        if form not in numbers:
            traced = Traced(lambda *args: _arrays(fn(*args)), params, batch)
            found.append((traced, Line(traced, named)))
            if found[-1][1].outline != found[0][1].outline:
                shapes = [[np.shape(leaf) for leaf in jax.tree.leaves(b)] for b in batches]
                raise ValueError(
                    f"prune_oneshot: for batch {place} of shapes {shapes[place]} the function is "
                    f"another program than for batch 0 of shapes {shapes[0]}; batches of one "
                    "shape would work"
                )
            numbers[form] = len(found) - 1
        data.append((numbers[form], [leaf for leaf in leaves if is_array(leaf)]))
    return found[0][0], [line for _, line in found], data
