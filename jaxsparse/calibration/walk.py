"""One walk through a program with all batches: what kernels meet is reduced, they are pruned,
and the walk goes on with what is left of them.
"""

import functools
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxsparse.calibration.live import Live
from jaxsparse.calibration.pieces import Unit, compiled, cuts_of, looked_at, pieces_of, units_of
from jaxsparse.calibration.reducers import Reducer
from jaxsparse.calibration.site import Site
from jaxsparse.calibration.steps import Ref
from jaxsparse.calibration.straight import Line

# Called as prune(unit, its kernels, the state of its reducer): what is left of the kernels.
Prune = Callable[[Unit, Any, Any], Any]


def walk(
    lines: Sequence[Line],
    weights: Mapping[str, Any],
    batches: Sequence[tuple[int, Sequence[Any]]],
    reducer: Reducer,
    prune: Prune,
    *,
    done: Mapping[Unit, Any],
    spill: str | pathlib.Path | None = None,
) -> dict[str, Any]:
    """Prunes kernels in the order of their last products, each by what it meets in all batches.

    Args:
      lines: the programs, of one outline; batches of several shapes have several.
      weights: every array of the parameters, by path.
      batches: the number of its line, and the arrays of it.
      reducer: of what is met.
      prune: called at every unit.
      done: what is left of kernels, known beforehand; `prune` is not called for them.
      spill: a folder for values that are alive, None for memory.

    Returns:
      The weights, with what `prune` left of them.
    """
    line, params = lines[0], {path: jnp.asarray(array) for path, array in weights.items()}
    names = [dict(zip(_weights(line), params, strict=True)) for line in lines]
    sites = {site.path: site for site in line.sites}
    units = units_of(line)
    cuts = cuts_of(line, units)
    whole = {leader for cut in cuts for leader, of in cut.units.items() if set(of) <= done.keys()}
    pieces = [pieces_of(line, cuts, units, whole) for line in lines]
    states: dict[Unit, Any] = {}
    functions: dict[Any, Callable] = {}
    own: set[str] = set()  # leaves that nobody else holds
    with Live(spill) as live:
        for number, (which, arrays) in enumerate(batches):
            data = [ref for ref in lines[which].arguments if ref in lines[which].data]
            for ref, array in zip(data, arrays, strict=True):
                live.put(number, ref, array)
        for place, cut in enumerate(cuts):
            looked = looked_at(pieces[0][place])
            for unit in looked:
                if unit not in states:
                    states[unit] = _begin(reducer, sites[unit.path], unit)
            given = [states[unit] for unit in looked]
            for number, (which, _) in enumerate(batches):
                piece = pieces[which][place]
                run = compiled(lines[which], piece, names[which], reducer, functions)
                results, given = run(
                    [params[names[which][ref]] for ref in piece.weights],
                    [lines[which].constants[ref] for ref in piece.constants],
                    [live.get(number, ref) for ref in piece.data],
                    given,
                )
                for ref in piece.gone:
                    live.drop(number, ref)
                for ref, array in zip(piece.returns, results, strict=True):
                    live.put(number, ref, array)
            states |= dict(zip(looked, given, strict=True))
            for leader, served in cut.units.items():
                state = states.pop(leader, None)
                for unit in served:
                    leaf, site = params[unit.path], sites[unit.path]
                    left = done.get(unit)
                    if left is None:
                        left = prune(unit, part(leaf, site, unit), state)
                    params[unit.path] = _with(leaf, left, site, unit, unit.path in own)
                    own.add(unit.path)
    return params


def _weights(line: Line) -> list[Ref]:
    return [ref for ref in line.arguments if ref not in line.data]


def _begin(reducer: Reducer, site: Site, unit: Unit) -> Any:
    sizes = [n for n, i in zip(site.kernels, unit.index, strict=True) if i is None]
    return jax.tree.map(lambda a: jnp.broadcast_to(a, (*sizes, *jnp.shape(a))), reducer.init(site))


def part(leaf: Any, site: Site, unit: Unit) -> Any:
    """The kernels of a unit; axes along which it is one of several stay, of size 1."""
    starts, shape = _place(site, unit)
    return leaf if shape == site.shape else _cut(leaf, starts, shape=shape)


def _with(leaf, new, site: Site, unit: Unit, own: bool):
    starts, shape = _place(site, unit)
    if shape == site.shape:
        return jnp.asarray(new)
    return (_PUT_IN_PLACE if own else _PUT)(leaf, new, starts)


def _place(site: Site, unit: Unit) -> tuple[np.ndarray, tuple[int, ...]]:
    one = {a: i for a, i in zip(site.batch_axis, unit.index, strict=True) if i is not None}
    starts = np.array([one.get(axis, 0) for axis in range(len(site.shape))], np.int32)
    return starts, tuple(1 if axis in one else size for axis, size in enumerate(site.shape))


def place_of(site: Site, unit: Unit) -> tuple[slice, ...]:
    """Where its kernels are in the leaf."""
    starts, shape = _place(site, unit)
    return tuple(slice(at, at + size) for at, size in zip(starts, shape, strict=True))


@functools.partial(jax.jit, static_argnames="shape")
def _cut(leaf, starts, *, shape):
    return lax.dynamic_slice(leaf, list(starts), shape)


def _put(leaf, new, starts):
    return lax.dynamic_update_slice(leaf, new, list(starts))


_PUT, _PUT_IN_PLACE = jax.jit(_put), jax.jit(_put, donate_argnums=0)
