"""A walk through a model with batches, checked before anything runs."""

import dataclasses
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp

from jaxsparse.calibration.checks import (
    check_batches,
    check_numbers,
    check_rows,
    check_units,
    only_sites,
)
from jaxsparse.calibration.criteria import Criterion
from jaxsparse.calibration.pieces import Unit, units_of
from jaxsparse.calibration.reducers import Reducer
from jaxsparse.calibration.site import Site
from jaxsparse.calibration.straight import Line, lines_of
from jaxsparse.calibration.walk import Prune, part, walk
from jaxsparse.patterns.rules import LeafSpec, Rule, check_rules, choose, resolve
from jaxsparse.products.reading import Traced
from jaxsparse.products.traced_axes import with_axes
from jaxsparse.trees import Tree


@dataclasses.dataclass(frozen=True, eq=False)
class Prepared:
    """What `prepare` found.

    Attributes:
      batches: as tuples.
      traced: the program for the first of them.
      lines, data: see `walk`.
      specs: of the leaves that the rules name.
      where: their sites.
      units: what is pruned at one time.
      known: by path what the criterion knows beforehand.
    """

    batches: list[tuple[Any, ...]]
    traced: Traced
    lines: list[Line]
    data: list[tuple[int, list[Any]]]
    specs: dict[str, LeafSpec]
    where: dict[str, Site]
    units: list[Unit]
    known: dict[str, Any]

    def beforehand(self, unit: Unit) -> Any | None:
        """What is known of the kernels of a unit."""
        if unit.path not in self.known:
            return None
        return part(jnp.asarray(self.known[unit.path]), self.where[unit.path], unit)

    def walk(
        self,
        reducer: Reducer,
        prune: Prune,
        *,
        done: Mapping[Unit, Any],
        spill: str | pathlib.Path | None,
    ) -> dict[str, Any]:
        """See `walk`."""
        named = zip(self.traced.names, self.traced.arrays, strict=True)
        weights = {name: array for name, array in named if name is not None}
        return walk(self.lines, weights, self.data, reducer, prune, done=done, spill=spill)


def prepare(
    fn: Callable[..., Any],
    params: Tree,
    batches: Iterable[Any],
    rules: Sequence[Rule],
    criterion: Criterion,
) -> Prepared:
    """Traces a model and finds where rules prune it.

    Raises:
      ValueError, TypeError: as `prune_oneshot`.
    """
    if not isinstance(criterion, Criterion):
        raise TypeError(f"prune_oneshot: {criterion!r} is no criterion; wanda() would work")
    if hasattr(batches, "shape") or isinstance(batches, Mapping):
        kind = "one array" if hasattr(batches, "shape") else "a dictionary"
        raise TypeError(f"prune_oneshot: batches is {kind}; [(batch,), ...] would work")
    batches = [batch if isinstance(batch, tuple) else (batch,) for batch in batches]
    check_batches(batches)
    named = choose(check_rules(rules), params)
    traced, lines, data = lines_of(fn, params, batches, named)
    line = lines[0]
    specs = resolve(with_axes(rules, params, line.found.values()), params)
    check_numbers(params, specs)
    known = {path: criterion.known(spec) for path, spec in specs.items()} if criterion.known else {}
    where = only_sites(list(line.sites.values()), specs)
    for error in line.untold.values():
        raise error
    units = units_of(line)
    check_units(units, where)
    check_rows(lines, data, criterion.reducer, where)
    return Prepared(batches, traced, lines, data, specs, where, list(units), known)
