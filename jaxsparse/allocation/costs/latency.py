"""`Latency`: the time of a program, from a table of its products' times on this device."""

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxsparse.allocation.costs import calls
from jaxsparse.allocation.costs.flops import WHOLE, Densities, Widths
from jaxsparse.allocation.costs.polynomials import Polynomial, total
from jaxsparse.allocation.costs.program import Block, Blocks, Part, Program
from jaxsparse.allocation.costs.remainder import Remainder
from jaxsparse.allocation.costs.storing import Storing
from jaxsparse.allocation.costs.table import NOTHING, LatencyTable
from jaxsparse.graph.analysis.trace import arrays_by_path
from jaxsparse.patterns.rules import Rule
from jaxsparse.trees import Tree


class Latency:
    """Milliseconds of one call of a compiled program, predicted for any widths and densities.

    Every product is looked up in the table as it is at these widths, dense, or packed where
    densities say so. The dense program without its products is another entry, and what it takes
    is in proportion to how many numbers it makes. All is scaled so that the dense program, as it
    was measured as a whole, is predicted exactly:

        t(w) = f (t_call + Σ t_product(w) + t_rest · numbers(w) / numbers(dense)),

    where f has what the parts do at once, or wait for. What the table lacks is measured when it
    is first asked for, in a loop inside of one program, since a single small product takes less
    time than calling it.

    Widths are rounded up to `steps` measured ones a group: a table does not need every width,
    and never is a network said to be faster than one that was measured.

    Args:
      table: of this device.
      fn, params, inputs, blocks: the model, as in `js.graph.structure`. It runs; of shapes
        made-up numbers are taken.
      rules: those that leaves are pruned by; single weights where no rule names a leaf.
      steps: how many widths of a group are measured at most.

    Attributes:
      unit: "ms".
      units: how many units each group has, by its name.
      layers: see `layers`.
      table: as given.
      run: the dense program on its inputs, compiled; no arguments.

    Raises:
      ValueError, TypeError: as `layers` and `js.read_axes`.
      KeyError: of a table that does not measure, where it lacks the dense program.

    Example:
      >>> def mlp(params, x):
      ...     return jnp.tanh(x @ params["up"]) @ params["down"]
      >>> params = {"up": jnp.ones((4, 32)), "down": jnp.ones((32, 16))}
      >>> table = LatencyTable(rounds=3)
      >>> latency = Latency(table, mlp, params, jnp.ones((5, 4)))
      >>> latency.total({"up, down": 16}) > 0, len(table.entries)
      (True, 7)

    References:
      Yang et al. 2018, arXiv 1804.03230, section 3.4: tables of layers' times.
    """

    unit = "ms"

    def __init__(
        self,
        table: LatencyTable,
        fn: Callable[..., Any],
        params: Tree,
        *inputs: Any,
        rules: Sequence[Rule] = (),
        blocks: Blocks | None = None,
        steps: int = 16,
    ):
        if not isinstance(steps, int) or steps < 1:
            raise ValueError(f"Latency: steps={steps!r}; a whole number from 1 on would work")
        self.table, self._program = table, Program(fn, params, inputs, blocks)
        self._storing = Storing(self._program, params, rules)
        self.units, self.layers = self._program.units, self._program.layers
        self._steps = {name: -(-units // steps) for name, units in self.units.items()}
        self.run = _Whole(fn, params, inputs)
        self._parts = [part for _, part in self._program.block.products()]
        self._groups = {id(part): _groups(part) for part in self._parts}
        self._known: dict[Any, str] = {}
        self._numbers = _numbers_made(self._program.block)
        self._name = f"program {_digest(self._program)}"
        table.measure({self._name: lambda: self.run})
        rest = f"{self._name} without its products"
        traced = self._program.analysis.program
        table.measure({rest: lambda: Remainder(traced, self.run.given)}, (self._name, self.run))
        self._rest = table[rest]
        self._measure(self.units, {})
        parts = self._unscaled(self.units, {})
        self._scale = self.dense / parts if parts else 1.0

    def total(self, widths: Widths = WHOLE, densities: Densities = WHOLE) -> float:
        """Of the whole program.

        Args:
          widths: by group how many units it keeps, from 1 on; others are whole.
          densities: by path which fraction of a leaf is stored packed, of what the widths
            leave; others are dense.

        Raises:
          KeyError: for what is no leaf, and what the table lacks and does not measure.
          ValueError: for what is no group, a width or density out of range, a density that a
            pattern does not have, and a weight that enters no product as a whole.
          TypeError: for a width that is no whole number.
        """
        found, densities = self._checked(widths, densities)
        self._measure(found, densities)
        return self._scale * self._unscaled(found, densities)

    def of(self, path: str, widths: Widths = WHOLE, densities: Densities = WHOLE) -> float:
        """Of one weight, in all the products that it enters. Args, Raises: as `total`."""
        self._program.check_path(path)
        found, densities = self._checked(widths, densities)
        parts = [
            (times, part) for times, part in self._program.block.products() if path in part.paths
        ]
        self._measure(found, densities, [part for _, part in parts])
        times = (times * self._time(part, found, densities) for times, part in parts)
        return self._scale * sum(times)

    @property
    def dense(self) -> float:
        """The dense program as a whole, as it was measured."""
        return self.table[NOTHING] + self.table[self._name]

    def _checked(self, widths: Widths, densities: Densities):
        found = self._program.check_widths(widths)
        for path, density in densities.items():
            self._program.kept(path, density, found)
        rounded = {
            name: min(-(-width // self._steps[name]) * self._steps[name], self.units[name])
            for name, width in found.items()
        }
        return rounded, {path: float(d) for path, d in densities.items() if d != 1}

    def _unscaled(self, widths: Mapping[str, int], densities: Densities) -> float:
        share = self._numbers(widths) / max(self._numbers(self.units), 1)
        return self.table[NOTHING] + self._products(widths, densities) + self._rest * share

    def _products(self, widths: Mapping[str, int], densities: Densities) -> float:
        def block(one: Block) -> float:
            return (
                sum(self._time(part, widths, densities) for part in one.parts)
                + sum(times * block(inner) for times, inner in one.inner)
                + sum(max(map(block, branches)) for branches in one.choices)
            )

        return block(self._program.block)

    def _time(self, part: Part, widths: Mapping[str, int], densities: Densities) -> float:
        name = self._known.get(self._key(part, widths, densities))
        return 0.0 if name is None else self.table[name]

    def _key(self, part: Part, widths: Mapping[str, int], densities: Densities):
        path = next((path for path in part.paths if path in densities), None)
        density = None if path is None else densities[path]
        return id(part), tuple(widths[name] for name in self._groups[id(part)]), density

    def _measure(
        self, widths: Mapping[str, int], densities: Densities, parts: Sequence[Part] | None = None
    ) -> None:
        """Has the table know all products at some widths and densities."""
        found = {}
        for part in self._parts if parts is None else parts:
            key = self._key(part, widths, densities)
            if key not in self._known and part.macs(widths):
                found[key] = self._call(part, widths, densities)
        if found:
            makes = {call.name: call.make for call in found.values()}
            self.table.measure(makes, (self._name, self.run))
            self._known |= {key: call.name for key, call in found.items()}

    def _call(self, part: Part, widths: Mapping[str, int], densities: Densities) -> calls.Call:
        path = next((path for path in part.paths if path in densities), None)
        if path is None:
            return calls.dense(part, widths)
        shape = self._program.shape(path, widths)
        self._storing.check(path, shape, densities[path])
        return calls.packed(part, path, densities[path], widths, shape, self._storing)


class _Whole:
    """The dense program on its arguments, of which shapes get made-up numbers.

    Attributes:
      given: the arguments of the traced program.
    """

    def __init__(self, fn: Callable[..., Any], params: Tree, inputs: Sequence[Any]):
        arguments = [*arrays_by_path(params).values(), *jax.tree.leaves(inputs)]
        self.given = [jnp.asarray(_drawn(leaf)) for leaf in arguments]
        leaves, tree = jax.tree.flatten((params, tuple(inputs)))
        arrays = {i for i, leaf in enumerate(leaves) if hasattr(leaf, "shape")}
        self._given = [_drawn(leaf) for i, leaf in enumerate(leaves) if i in arrays]

        def call(given):
            left = iter(given)
            whole = [next(left) if i in arrays else leaf for i, leaf in enumerate(leaves)]
            params, inputs = jax.tree.unflatten(tree, whole)
            return fn(params, *inputs)

        self._function = jax.jit(call)

    def __call__(self) -> Any:
        return self._function(self._given)


def _drawn(leaf: Any) -> Any:
    if not isinstance(leaf, jax.ShapeDtypeStruct):
        return leaf
    if not jnp.issubdtype(leaf.dtype, jnp.inexact):
        return jnp.zeros(leaf.shape, leaf.dtype)
    return jnp.asarray(np.random.default_rng(0).normal(size=leaf.shape) / 8, leaf.dtype)


def _groups(part: Part) -> tuple[str, ...]:
    """Whose widths the sizes of a product depend on."""
    sizes = (size for shape in part.shapes for size in shape)
    return tuple(sorted({name for size in sizes for names, _ in size.terms for name in names}))


def _numbers_made(block: Block) -> Polynomial:
    """How many numbers everything but products makes; of a branching all branches."""
    inner = [_numbers_made(inner) * times for times, inner in block.inner]
    branches = [_numbers_made(branch) for branches in block.choices for branch in branches]
    return total([block.rest, *inner, *branches])


def _digest(program: Program) -> str:
    """What tells a program from others: its text without addresses of functions."""
    text = re.sub(r" at 0x[0-9a-f]+|id=\d+", "", str(program.analysis.program[0]))
    return hashlib.sha256(text.encode()).hexdigest()[:16]
