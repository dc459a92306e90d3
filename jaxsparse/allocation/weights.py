"""`Weights`: a budget of how many weights are kept."""

import math
from collections.abc import Sequence
from typing import Literal

from jaxsparse.allocation.costs.flops import WHOLE, Densities, Widths
from jaxsparse.allocation.costs.kept import kept_entries, open_specs, pruned_share
from jaxsparse.patterns.rules import LeafSpec, Rule
from jaxsparse.trees import Tree, near_misses


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
        self._specs = open_specs(rules, params)
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
        density = float(densities.get(path, 1))
        if self._per == "output":
            inputs, outputs = spec.view.matrix_shape
            kept = inputs - round(pruned_share(density) * inputs)
            return math.prod(spec.view.batch_shape) * outputs * kept
        return kept_entries(spec, density)

    def _spec(self, path: str) -> LeafSpec:
        if path not in self._specs:
            raise KeyError(f"Weights: no leaf {path!r}; {near_misses(path, self._specs)}")
        return self._specs[path]
