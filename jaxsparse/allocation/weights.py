"""`Weights`: a budget of how many weights are kept."""

import math
from collections.abc import Sequence
from typing import Literal

from jaxsparse.allocation.costs.flops import WHOLE, Densities, Widths
from jaxsparse.patterns.rules import LeafSpec, Rule, check_rules, resolve
from jaxsparse.pruning.distributions import known_target
from jaxsparse.trees import Tree, near_misses


def entries_of(spec: LeafSpec, groups: int) -> int:
    """How many entries so many groups of a kernel have at most, as those at its edges have fewer.

    >>> import jax
    >>> from jaxsparse import Block, Rule
    >>> from jaxsparse.patterns.rules import resolve
    >>> spec = resolve([Rule("w", Block(4, 4, pad=True))], {"w": jax.numpy.ones((4, 6))})["w"]
    >>> spec.units, entries_of(spec, 1), entries_of(spec, 2)
    (2, 16, 24)
    """
    return min(groups * spec.pattern.group_size(spec.view), math.prod(spec.view.matrix_shape))


class Weights:
    """How many weights masks keep, of the leaves whose sparsity the rules leave open: a cost.

    As many as `js.compute_masks` and `prune_oneshot` keep of each, and never fewer: where a
    density is half-way between two numbers of groups the larger counts, and a padded group at an
    edge counts as a whole one.

    Args:
      rules, params: what is pruned; shapes are enough.
      per: "output" where `prune_oneshot` gets that, too.

    Attributes:
      unit: "weights".
      units: none; it knows no groups of units.

    Raises:
      ValueError: as `js.targets`.

    Example:
      >>> import jax.numpy as jnp, jaxsparse as js
      >>> params = {"up": jnp.ones((4, 8)), "down": jnp.ones((8, 4))}
      >>> weights = Weights([js.Rule(".*", js.Block(4, 4))], params)
      >>> weights.total(), weights.total(densities={"up": 0.5})
      (64, 48)
    """

    unit = "weights"

    def __init__(
        self, rules: Sequence[Rule], params: Tree, *, per: Literal["layer", "output"] = "layer"
    ):
        specs = resolve(check_rules(rules), params)
        self._specs = {path: spec for path, spec in specs.items() if known_target(spec) is None}
        self.units: dict[str, int] = {}
        self._per = per

    def total(self, widths: Widths = WHOLE, densities: Densities = WHOLE) -> int:
        """Of all leaves.

        Args:
          widths: none.
          densities: by path the share that is kept; other leaves are whole.

        Raises:
          KeyError: a leaf that no rule leaves open.
          ValueError: widths, of which it knows nothing.
        """
        shares = dict(densities)
        for path in shares:
            self._spec(path)
        return sum(self.of(path, widths, shares) for path in self._specs)

    def of(
        self,
        path: str,
        widths: Widths = WHOLE,
        densities: Densities = WHOLE,
    ) -> int:
        """Of one leaf; see `total`."""
        if widths:
            raise ValueError(f"Weights: it knows no groups such as {next(iter(widths))!r}")
        spec = self._spec(path)
        inputs, outputs = spec.view.matrix_shape
        slices = math.prod(spec.view.batch_shape)
        # 1 - (1 - s) is not s to the last bit, and s n may be half-way between two numbers.
        share = max(1 - float(densities.get(path, 1)) - 2**-52, 0.0)
        if self._per == "output":
            return slices * outputs * (inputs - round(share * inputs))
        return slices * entries_of(spec, spec.kept(share))

    def _spec(self, path: str) -> LeafSpec:
        if path not in self._specs:
            raise KeyError(f"Weights: no leaf {path!r}; {near_misses(path, self._specs)}")
        return self._specs[path]
