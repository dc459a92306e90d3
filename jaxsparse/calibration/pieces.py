"""Where the line of a program is cut, and the pieces between two cuts, each one jitted function.

A kernel is pruned before its last product. There the line is cut: what comes before runs over
all batches, what the kernel meets is reduced, and what comes after goes on with the pruned
kernel.
"""

import dataclasses
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxsparse.calibration import sameness
from jaxsparse.calibration.reducers import Reducer
from jaxsparse.calibration.site import site_of
from jaxsparse.calibration.steps import Ref, Step
from jaxsparse.calibration.straight import CALLER, Line
from jaxsparse.calibration.turned import Turned
from jaxsparse.products.reading import Reader
from jaxsparse.products.sights import Sight, Value


@dataclasses.dataclass(frozen=True)
class Unit:
    """What is pruned at one time: a weight, or some kernels of a stack.

    Attributes:
      path: of the weight.
      index: by batch axis of the site which kernel it is, None for all.
    """

    path: str
    index: tuple[int | None, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Cut:
    """A place where kernels are pruned.

    Attributes:
      step: before which.
      units: by unit whose statistic is taken, all that it is the statistic of.
    """

    step: int
    units: Mapping[Unit, Sequence[Unit]]


def units_of(line: Line) -> dict[Unit, list[int]]:
    """What is pruned at one time, and the steps that meet it.

    The kernels of a stack are apart along axes where every product says which kernel it has.
    """
    apart: dict[str, list[bool]] = {}
    for step in line.steps:
        for use in step.uses:
            known = apart.setdefault(use.path, [True] * len(use.index))
            apart[use.path] = [a and i is not None for a, i in zip(known, use.index, strict=True)]
        several = [use.path for use in step.uses]
        for path in several:
            if several.count(path) > 1:  # one step tells them apart by path alone
                apart[path] = [False] * len(apart[path])
    found: dict[Unit, list[int]] = {}
    for number, step in enumerate(line.steps):
        for use in step.uses:
            index = zip(use.index, apart[use.path], strict=True)
            unit = Unit(use.path, tuple(i if known else None for i, known in index))
            steps = found.setdefault(unit, [])
            if number not in steps:
                steps.append(number)
    return found


def cuts_of(line: Line, units: Mapping[Unit, Sequence[int]]) -> list[Cut]:
    """The cuts, in order.

    Kernels with one product each that meet the same value are pruned at the first of these:
    one statistic serves all.
    """
    first: dict[Hashable, Unit] = {}
    served: dict[Unit, list[Unit]] = {}
    for unit, steps in sorted(units.items(), key=lambda pair: pair[1][0]):
        [*ways] = {use.met for n in steps for use in line.steps[n].uses if use.path == unit.path}
        leader = unit
        if len(steps) == 1 and len(ways) == 1 and ways[0] is not None and None not in unit.index:
            leader = first.setdefault(ways[0], unit)
        served.setdefault(leader, []).append(unit)
    by_step: dict[int, dict[Unit, Sequence[Unit]]] = {}
    for leader, all_of_it in served.items():
        by_step.setdefault(units[leader][-1], {})[leader] = all_of_it
    return [Cut(step, by_step[step]) for step in sorted(by_step)]


@dataclasses.dataclass(frozen=True, eq=False)
class Piece:
    """The steps from one cut to the next.

    Attributes:
      steps: their numbers in order, with those that it computes again from weights.
      watched: by step whose results are looked at, the units that are.
      weights, constants, data: variables that it needs.
      returns: variables that later pieces need.
      gone: data that none of them needs.
    """

    steps: tuple[int, ...]
    watched: Mapping[int, Sequence[Unit]]
    weights: tuple[Ref, ...]
    constants: tuple[Ref, ...]
    data: tuple[Ref, ...]
    returns: tuple[Ref, ...] = ()
    gone: tuple[Ref, ...] = ()


def pieces_of(
    line: Line, cuts: Sequence[Cut], units: Mapping[Unit, Sequence[int]], done: Collection[Unit]
) -> list[Piece]:
    """The pieces before every cut; what is done already is not looked at again."""
    watched: dict[int, list[Unit]] = {}
    for cut in cuts:
        for unit in cut.units:
            for step in units[unit]:
                watched.setdefault(step, []).append(unit)
    needed = _needed(line, watched)
    makers = {ref: number for number, step in enumerate(line.steps) for ref in step.results}
    pieces, start = [], 0
    for cut in cuts:
        looks = {
            n: [unit for unit in watched[n] if unit not in done]
            for n in range(start + bool(pieces), cut.step + 1)
            if n in watched
        }
        looks = {n: looked for n, looked in looks.items() if looked}
        steps = {n for n in range(start, cut.step) if n in needed and line.steps[n].moves}
        pieces.append(_piece(line, steps | set(looks), looks, makers))
        start = cut.step
    last = {ref: number for number, piece in enumerate(pieces) for ref in piece.data}
    for number, piece in enumerate(pieces):
        made = {
            ref
            for n in piece.steps
            if line.steps[n].moves and n != cuts[number].step
            for ref in line.steps[n].results
        }
        returns = tuple(sorted(ref for ref in made if last.get(ref, -1) > number))
        gone = tuple(sorted(ref for ref, when in last.items() if when == number))
        pieces[number] = dataclasses.replace(piece, returns=returns, gone=gone)
    return pieces


def _needed(line: Line, watched: Collection[int]) -> set[int]:
    """Steps whose results what is looked at depends on."""
    live: set[Any] = set()
    needed = set()
    for number in reversed(range(len(line.steps))):
        step = line.steps[number]
        if live & set(step.results):
            needed.add(number)
        elif number not in watched:
            continue
        live |= {o for o in step.operands if isinstance(o, Ref)}
    return needed


def _piece(line: Line, own: Collection[int], watched, makers: Mapping[Ref, int]) -> Piece:
    """The piece of some steps, with what they need."""
    steps, given, left = set(own), set[Ref](), list(own)
    while left:
        for operand in line.steps[left.pop()].operands:
            if not isinstance(operand, Ref):
                continue
            maker = makers.get(operand)
            if maker is None or (line.steps[maker].moves and maker not in own):
                given.add(operand)
            elif maker not in steps:
                steps.add(maker)
                left.append(maker)
    arguments = {ref for ref in line.arguments if ref not in line.data}
    constants = tuple(sorted(given & line.constants.keys()))
    weights = tuple(sorted(given & arguments))
    data = tuple(sorted(given - arguments - line.constants.keys()))
    return Piece(tuple(sorted(steps)), watched, weights, constants, data)


def compiled(
    line: Line, piece: Piece, names: Mapping[Ref, str], reducer: Reducer, cache: dict
) -> Callable[..., Any]:
    """The function of a piece, the same one for equal pieces.

    Args:
      line: of the program.
      piece: of it.
      names: by variable the path of the weight that it is.
      reducer: of what is met.
      cache: of functions by key.

    Returns:
      Called as f(weights, constants, data, states), with the states of the units that the piece
      looks at, in their order; returns what the piece does, and new states.
    """
    numbers = {ref: n for n, ref in enumerate([*piece.weights, *piece.constants, *piece.data])}
    weights = {names[ref]: numbers[ref] for ref in piece.weights}
    slots = {unit: slot for slot, unit in enumerate(looked_at(piece))}
    steps = []
    for number in piece.steps:
        step = line.steps[number]
        operands = tuple(
            numbers[o] if isinstance(o, Ref) else sameness.of_value(o) for o in step.operands
        )
        numbers |= {ref: len(numbers) + n for n, ref in enumerate(step.results)}
        looks = tuple(
            (slots[unit], weights[unit.path], [i is None for i in unit.index], line.form(unit.path))
            for unit in piece.watched.get(number, ())
        )
        steps.append((step.key, operands, sameness.of_value(looks)))
    counts = len(piece.weights), len(piece.constants), len(piece.data)
    data = tuple(ref in line.data for ref in piece.data)
    key = counts, data, tuple(steps), tuple(numbers[ref] for ref in piece.returns)
    if key not in cache:
        cache[key] = jax.jit(_function(line, piece, names, reducer))
    return cache[key]


def looked_at(piece: Piece) -> list[Unit]:
    """The units whose states a piece takes."""
    return list(dict.fromkeys(unit for units in piece.watched.values() for unit in units))


def _function(line: Line, piece: Piece, names: Mapping[Ref, str], reducer: Reducer):
    slots = {unit: slot for slot, unit in enumerate(looked_at(piece))}
    steps: list[tuple[int, Step]] = [(number, line.steps[number]) for number in piece.steps]
    views = {
        number: {unit.path: (slots[unit], unit.index) for unit in units}
        for number, units in piece.watched.items()
    }

    def run(weights, constants, data, states):
        watcher = _Watcher(reducer, states)
        values: dict[Ref, Any] = dict(zip(piece.constants, constants, strict=True))
        for ref, array in zip(piece.weights, weights, strict=True):
            values[ref] = Value(array, (Sight.of(names[ref], array.shape),))
        for ref, array in zip(piece.data, data, strict=True):
            values[ref] = Value(array, data=ref in line.data)
        for number, step in steps:
            watcher.views = views.get(number, {})
            operands = [values[o] if isinstance(o, Ref) else o for o in step.operands]
            values.update(zip(step.results, step.run(watcher, operands), strict=True))
        return [jnp.asarray(watcher.array(values[r], "")) for r in piece.returns], watcher.state

    return run


class _Watcher(Reader):
    """A reader that reduces what some weights meet.

    Attributes:
      state: of the units looked at.
      views: of the step that runs, by path where the state of its unit is, and its index.
    """

    def __init__(self, reducer: Reducer, states: Sequence[Any]):
        super().__init__()
        self._reducer, self.state = reducer, list(states)
        self.views: Mapping[str, tuple[int, tuple[int | None, ...]]] = {}

    def meet(self, equation, sight, position, other):
        if sight.path not in self.views:
            return
        slot, unit = self.views[sight.path]
        turned = Turned(
            site_of(equation, sight, position), equation, sight, position, other, CALLER
        )
        index = tuple(i for i, one in zip(turned.index, unit, strict=True) if one is None)
        new = turned.reduced(self._reducer, self.state[slot], index)
        self.state = [new if n == slot else old for n, old in enumerate(self.state)]
