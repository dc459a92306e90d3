"""`Flops`: the multiplications of a program, for any widths and densities."""

import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Protocol, SupportsIndex

import jax
import jax.numpy as jnp

from jaxsparse.allocation.costs.kept import kept_entries, open_specs
from jaxsparse.allocation.costs.polynomials import Polynomial, total
from jaxsparse.allocation.costs.program import Block, Blocks, Layer, Program
from jaxsparse.patterns.rules import Rule
from jaxsparse.trees import Tree

Widths = Mapping[str, SupportsIndex]
Densities = Mapping[str, float]
WHOLE: Mapping[str, Any] = MappingProxyType({})


class Cost(Protocol):
    """What a budget is counted in.

    Attributes:
      unit: "MACs", "bytes" or "ms".
      units: how many units each group of the model has, by its name.
    """

    unit: str
    units: dict[str, int]

    def total(self, widths: Widths = ..., densities: Densities = ...) -> int | float:
        """Of the whole program, where groups keep some units and leaves a share of entries."""
        ...

    def of(self, path: str, widths: Widths = ..., densities: Densities = ...) -> int | float:
        """Of one weight alone."""
        ...


def check_cost(cost: Any, who: str, units: Mapping[str, int] = WHOLE) -> None:
    """Refuses what is no cost, or that of another model.

    Raises:
      TypeError: no cost, such as the function that evaluates in its place.
      ValueError: it has not these units of some groups.
    """
    if not isinstance(getattr(cost, "units", None), Mapping) or not hasattr(cost, "total"):
        raise TypeError(
            f"{who}: cost is {type(cost).__name__}, which counts nothing; "
            "js.allocation.Flops(fn, params, *inputs) would work"
        )
    for name, count in units.items():
        if cost.units.get(name) != count:
            raise ValueError(
                f"{who}: {name!r} has {count} units, in the cost it has "
                f"{cost.units.get(name, 'none')}; the cost of this fn, params and inputs would work"
            )


class Flops:
    """Multiplications of the products in a program: of weights, and of activations.

    A multiplication and its addition count as one. Biases, norms and what else multiplies
    number by number do not count, padding does. A `scan` counts for all its turns, a `while`,
    whose turns nobody knows, for one, a `cond` by its dearest branch.

    The program is traced once; a call evaluates polynomials in the widths.

    Args:
      fn, params, inputs, blocks: the model, as in `js.graph.structure`; shapes are enough.
      rules: those that leaves are pruned by, for densities: what masks of their patterns keep is
        counted, whole groups, also where padding cuts one off; single weights where no rule
        names a leaf.

    Attributes:
      unit: "MACs".
      units: how many units each group has, by its name.
      layers: see `layers`.
      inputs: shapes of the inputs.

    Raises:
      ValueError, TypeError: as `layers` and `js.read_axes`.

    Example:
      >>> import jax.numpy as jnp
      >>> def mlp(params, x):
      ...     return jnp.tanh(x @ params["up"]) @ params["down"]
      >>> params = {"up": jnp.ones((2, 8)), "down": jnp.ones((8, 3))}
      >>> flops = Flops(mlp, params, jnp.ones((5, 2)))
      >>> flops.units
      {'up, down': 8}
      >>> flops.total(), flops.total({"up, down": 6}), flops.of("down", densities={"down": 0.5})
      (200, 150, 60)
    """

    unit = "MACs"

    def __init__(
        self,
        fn: Callable[..., Any],
        params: Tree,
        *inputs: Any,
        rules: Sequence[Rule] = (),
        blocks: Blocks | None = None,
    ):
        self._program = Program(fn, params, inputs, blocks)
        self._specs = open_specs(rules, params) if rules else {}
        self.units = self._program.units
        self.layers: tuple[Layer, ...] = self._program.layers
        self.inputs = jax.tree.map(jnp.shape, inputs)
        self._count = _Count(self._program.block)
        macs: dict[str, list[Polynomial]] = {}
        for times, part in self._program.block.products():
            for path in part.paths:
                macs.setdefault(path, []).append(part.macs * times)
        self._macs = {path: total(found) for path, found in macs.items()}

    def total(self, widths: Widths = WHOLE, densities: Densities = WHOLE) -> int:
        """Of the whole program.

        Args:
          widths: by group how many units it keeps, from 1 on; others are whole.
          densities: by path which fraction of a leaf's entries is kept, of those that the
            widths leave; others are whole. Kept is the nearest whole number of entries, or of
            the groups of its rule, of two the larger, and each takes part in as many
            multiplications as an entry of the whole leaf.

        Raises:
          KeyError: for what is no leaf.
          ValueError: for what is no group, a width or density out of range, and the density of a
            leaf with a rule of which widths leave a part.
          TypeError: for a width that is no whole number.
        """
        found = self._program.check_widths(widths)
        shares = {path: self._kept(path, d, found) for path, d in densities.items()}
        return self._count(found, shares)

    def of(self, path: str, widths: Widths = WHOLE, densities: Densities = WHOLE) -> int:
        """Of one weight, in all the products that it enters; 0 for a leaf that enters none.

        Args, Raises: as `total`. A product of two weights counts for both, and one in a
        branch as if that were taken.
        """
        found = self._program.check_widths(widths)
        self._program.check_path(path)
        macs = self._macs[path](found) if path in self._macs else 0
        if path in densities:
            return _share(macs, self._kept(path, densities[path], found))
        return macs

    def _kept(self, path: str, density: float, widths: Mapping[str, int]) -> tuple[int, int]:
        kept, size = self._program.kept(path, density, widths)
        if path not in self._specs:
            return kept, size
        shape = self._program.shapes[path]
        if size != math.prod(shape):
            raise ValueError(
                f"densities: {path!r} of shape {shape} is pruned by a rule, and widths leave a "
                "part of it; a width or a density of it would work"
            )
        return kept_entries(self._specs[path], density), size


class _Count:
    """A block with its products summed, those of every weight by themselves."""

    def __init__(self, block: Block):
        self.parts: dict[str | None, Polynomial] = {}
        self.choices: list[tuple[int, list[_Count]]] = []
        self._add(block, 1)
        self.whole = total(self.parts.values())

    def _add(self, block: Block, times: int) -> None:
        for part in block.parts:
            # What two weights enter together counts by the first one's density.
            path = part.paths[0] if part.paths else None
            before = self.parts.get(path, Polynomial(()))
            self.parts[path] = before + part.macs * times
        for repeats, inner in block.inner:
            self._add(inner, times * repeats)
        for branches in block.choices:
            self.choices.append((times, [_Count(branch) for branch in branches]))

    def __call__(self, widths: Widths, shares: Mapping[str, tuple[int, int]]) -> int:
        found = self.whole(widths)
        for path, share in shares.items():
            if path in self.parts:
                macs = self.parts[path](widths)
                found += _share(macs, share) - macs
        for times, branches in self.choices:
            found += times * max(branch(widths, shares) for branch in branches)
        return found


def _share(macs: int, share: tuple[int, int]) -> int:
    """The multiplications of the entries that are kept; the nearest number where none is exact."""
    kept, size = share
    return (2 * macs * kept + size) // (2 * size) if size else 0
