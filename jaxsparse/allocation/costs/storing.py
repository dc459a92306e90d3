"""How the weights of a program are stored once they are pruned: by the patterns of rules."""

import functools
import math
import re
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

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

    def packed(
        self,
        path: str,
        shape: tuple[int, ...],
        density: float,
        dtype: Any,
        *,
        flat: bool = False,
    ) -> Packed:
        """One slice of a leaf, packed, of made-up numbers; `flat` as a matrix.

        Raises:
          ValueError: a density that the pattern does not have.
        """
        self.check(path, shape, density)
        pattern, view = self.view(path, shape)
        seen = View(view.matrix_shape, (), (0,), (1,)) if flat else view.slice
        structure = draw(jax.random.key(0), seen, pattern.storage(view), 1 - density)
        return structure.with_values(jnp.full(structure.layout.values_shape, 0.5, dtype))

    def check(self, path: str, shape: tuple[int, ...], density: float) -> None:
        """ValueError for a density that a leaf's pattern does not have."""
        pattern, _ = self.view(path, shape)
        if pattern.fixed and not math.isclose(1 - density, pattern.max_sparsity):
            raise ValueError(
                f"densities: {path!r} is {pattern}, which keeps {1 - pattern.max_sparsity}, not "
                f"{density}; that, or another rule for it, would work"
            )

    def bytes(self, path: str, shape: tuple[int, ...], density: float, itemsize: int) -> int:
        """What a leaf takes packed, or dense where that is less."""
        dense = math.prod(shape) * itemsize
        if density == 1 or not dense:
            return dense
        self.check(path, shape, density)
        pattern, view = self.view(path, shape)
        one = sizes(view.slice, pattern.storage(view), 1 - density)
        stack = math.prod(view.batch_shape)
        index = sum(math.prod(a.shape) * a.dtype.itemsize for a in jax.tree.leaves(one))
        return min(dense, stack * (math.prod(one.layout.values_shape) * itemsize + index))


def draw(key: jax.Array, view: View, pattern: Pattern, sparsity: float) -> Packed:
    """A structure whose places are drawn."""
    return storage_of(pattern).draw(key, view, pattern, None if pattern.fixed else sparsity)


@functools.lru_cache(maxsize=4096)  # searches ask for the same structures again and again
def sizes(view: View, pattern: Pattern, sparsity: float) -> Packed:
    """Shapes of such a structure."""
    return jax.eval_shape(lambda key: draw(key, view, pattern, sparsity), jax.random.key(0))
