"""`Bytes`: what the parameters of a program take to store, for any widths and densities."""

from collections.abc import Callable, Sequence
from typing import Any

from jaxsparse.allocation.costs.flops import WHOLE, Densities, Widths
from jaxsparse.allocation.costs.polynomials import total
from jaxsparse.allocation.costs.program import Blocks, Program
from jaxsparse.allocation.costs.storing import Storing
from jaxsparse.patterns.rules import Rule
from jaxsparse.trees import Tree


class Bytes:
    """Bytes of all leaves of the parameters, as they are stored.

    Dense leaves are arrays. Pruned ones are packed by the pattern of their rule, indices
    counted, places as if drawn; or dense where that is less, as in `js.report`.

    Args:
      fn, params, inputs, blocks: the model, as in `js.graph.structure`; shapes are enough.
      rules: those that leaves are pruned by; single weights where no rule names a leaf.

    Attributes:
      unit: "bytes".
      units: how many units each group has, by its name.
      layers: see `layers`.

    Raises:
      ValueError, TypeError: as `layers` and `js.read_axes`.

    Example:
      >>> import jax.numpy as jnp, jaxsparse as js
      >>> def mlp(params, x):
      ...     return jnp.tanh(x @ params["up"]) @ params["down"]
      >>> params = {"up": jnp.ones((4, 32)), "down": jnp.ones((32, 16))}
      >>> rules = [js.Rule("down", js.Block(4, 16))]
      >>> stored = Bytes(mlp, params, jnp.ones((5, 4)), rules=rules)
      >>> stored.total(), stored.total({"up, down": 16}), stored.of("down", densities={"down": 0.5})
      (2560, 1280, 1048)
    """

    unit = "bytes"

    def __init__(
        self,
        fn: Callable[..., Any],
        params: Tree,
        *inputs: Any,
        rules: Sequence[Rule] = (),
        blocks: Blocks | None = None,
    ):
        self._program = Program(fn, params, inputs, blocks)
        self._storing = Storing(self._program, params, rules)
        self.units, self.layers = self._program.units, self._program.layers
        self._leaves = {
            path: size * self._program.itemsizes[path] for path, size in self._program.sizes.items()
        }
        self._dense = total(self._leaves.values())

    def total(self, widths: Widths = WHOLE, densities: Densities = WHOLE) -> int:
        """Of all leaves.

        Args, Raises: as `Flops.total`; ValueError for a density that a pattern does not have.
        """
        found = self._program.check_widths(widths)
        packed = sum(
            self._packed(path, density, found) - self._leaves[path](found)
            for path, density in densities.items()
        )
        return self._dense(found) + packed

    def of(self, path: str, widths: Widths = WHOLE, densities: Densities = WHOLE) -> int:
        """Of one leaf. Args, Raises: as `total`."""
        found = self._program.check_widths(widths)
        self._program.check_path(path)
        if path in densities:
            return self._packed(path, densities[path], found)
        return self._leaves[path](found)

    def _packed(self, path: str, density: float, widths: dict[str, int]) -> int:
        self._program.kept(path, density, widths)
        shape = self._program.shape(path, widths)
        itemsize = self._program.itemsizes[path]
        return self._storing.bytes(path, shape, float(density), itemsize)
