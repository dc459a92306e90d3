"""How the weights of a program are stored once they are pruned: by the patterns of rules."""

import functools
import math
import re
from collections.abc import Sequence

import jax

from jaxsparse.allocation.costs.program import Program
from jaxsparse.packed.base import Packed
from jaxsparse.packed.packing import storage_of
from jaxsparse.patterns.base import Pattern, Unstructured
from jaxsparse.patterns.rules import Rule, check_rules, choose
from jaxsparse.patterns.views import View, view_of
from jaxsparse.products.traced_axes import with_axes
from jaxsparse.trees import Tree


class Storing:
    """The structures in which leaves of a program are packed.

    Args:
      program: whose products say which axes of a weight are inputs.
      params: of it.
      rules: of the leaves that they name; others are single weights.

    Raises:
      ValueError: as `js.read_axes`.
    """

    def __init__(self, program: Program, params: Tree, rules: Sequence[Rule]):
        met = [product for found in program.analysis.products.values() for product in found]
        self._rules: dict[str, Rule] = {}
        if rules:
            named = choose(check_rules(rules), params)
            self._rules |= zip(named, with_axes(rules, params, met), strict=True)
        rest = dict.fromkeys(layer.path for layer in program.layers)
        rest = sorted(path for path in rest if path not in self._rules)
        singles = [Rule(re.escape(path), Unstructured()) for path in rest]
        if singles:
            self._rules |= zip(rest, with_axes(singles, params, met), strict=True)

    def view(self, path: str, shape: tuple[int, ...]) -> tuple[Pattern, View]:
        """The pattern of a leaf, and its axes when it has some shape."""
        rule = self._rules.get(path)
        if rule is None or rule.pattern is None:
            axes = tuple(range(len(shape)))
            return Unstructured(), View(shape, (), axes[:-1], axes[-1:])
        axes = rule.in_axis, rule.out_axis, rule.batch_axis
        return rule.pattern, view_of(path, shape, *axes, directed=True)

    def structure(self, path: str, shape: tuple[int, ...], density: float) -> Packed:
        """Shapes of what one slice of a leaf is stored as; no values.

        Raises:
          ValueError: a density that the pattern does not have.
        """
        pattern, view = self.view(path, shape)
        sparsity = 1 - density
        if pattern.fixed and not math.isclose(sparsity, pattern.max_sparsity):
            raise ValueError(
                f"densities: {path!r} is {pattern}, which keeps {1 - pattern.max_sparsity}, not "
                f"{density}; that, or another rule for it, would work"
            )
        return drawn(view.slice, pattern.storage(view), sparsity)

    def bytes(self, path: str, shape: tuple[int, ...], density: float, itemsize: int) -> int:
        """What a leaf takes packed, or dense where that is less."""
        dense = math.prod(shape) * itemsize
        if density == 1 or not dense:
            return dense
        one = self.structure(path, shape, density)
        stack = math.prod(self.view(path, shape)[1].batch_shape)
        index = sum(math.prod(a.shape) * a.dtype.itemsize for a in jax.tree.leaves(one))
        return min(dense, stack * (math.prod(one.layout.values_shape) * itemsize + index))


@functools.lru_cache(maxsize=4096)  # tables ask for the same structures again and again
def drawn(view: View, pattern: Pattern, sparsity: float) -> Packed:
    """Shapes of a structure whose places are drawn."""
    draw = functools.partial(
        storage_of(pattern).draw,
        view=view,
        pattern=pattern,
        sparsity=None if pattern.fixed else sparsity,
    )
    return jax.eval_shape(draw, jax.random.key(0))
