"""What a one-shot method has to keep of one kernel."""

import dataclasses
from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxsparse.patterns.base import Pattern, Reduce, Unstructured
from jaxsparse.patterns.groups import Block
from jaxsparse.patterns.nm import NM
from jaxsparse.patterns.rules import LeafSpec
from jaxsparse.patterns.views import View
from jaxsparse.top_k import Candidates, top_k_masks


@dataclasses.dataclass(frozen=True)
class Target:
    """A pattern, how sparse, and what competes for it in a kernel (K, N).

    Attributes:
      pattern: `Unstructured()`, `NM(n, m)`, `Block(k, n)` or any other.
      sparsity: fraction of zeros, 0 to 1; None for a pattern that fixes it.
      per: "layer", or "output": every column of an unstructured kernel keeps as many, as
        Wanda has it.
      view: how the kernel lies in its leaf, for patterns that name axes of it; None is (K, N).

    Example:
      >>> target = Target(NM(2, 4))
      >>> target.mask(jnp.array([[1.0], [4.0], [2.0], [3.0]])).ravel().tolist()
      [False, True, False, True]
    """

    pattern: Pattern
    sparsity: float | None = None
    per: Literal["layer", "output"] = "layer"
    view: View | None = None

    def __post_init__(self):
        if self.per not in ("layer", "output"):
            raise ValueError(f"per={self.per!r}: 'layer' or 'output' would work")
        if self.per == "output" and not self.single:
            raise ValueError(
                f"per='output' is for Unstructured(), whose entries compete; groups of "
                f"{self.pattern} compete as the pattern says, with per='layer'"
            )
        if self.sparsity is None and not self.pattern.fixed:
            raise ValueError(f"{self.pattern} needs a sparsity, such as 0.5")
        if self.sparsity is not None and not 0 <= self.sparsity < 1:
            raise ValueError(f"sparsity {self.sparsity} is not in [0, 1); 0.5 would work")

    @property
    def single(self) -> bool:
        """Whether any entry may be kept."""
        return isinstance(self.pattern, Unstructured)

    def mask(
        self,
        scores: Float[Array, "k n"],
        pruned: Int[Array, ""] | int | None = None,
        reduce: Reduce | None = None,
    ) -> Bool[Array, "k n"]:
        """Keeps what scores highest; of equal scores what comes first.

        Args:
          scores: at least zero, one for every entry; groups are scored by what their pattern
            reduces them to.
          pruned: how many units go in place of what `sparsity` says: entries of the kernel, or
            of each output, where any entry may be kept; else groups.
          reduce: in place of the pattern's own.

        Raises:
          ValueError: the pattern does not fit the shape.
        """
        inputs, outputs = scores.shape
        gone = self.pruned(inputs, outputs) if pruned is None else pruned
        if self.single:
            per_output = self.per == "output"
            slices = scores.T if per_output else scores.reshape(1, -1)
            mask = _best(slices, slices.shape[1] - gone)
            return mask.T if per_output else mask.reshape(scores.shape)
        spec = self._spec(inputs, outputs)
        view, pattern = spec.view, spec.pattern
        groups = spec.pool(view.leaf(scores.reshape(*view.batch_shape, inputs, outputs)), reduce)
        units, _ = pattern.unit_scores(groups, None, view)
        kept = _best(units.reshape(1, -1), spec.units - gone).reshape(units.shape)
        mask = spec.expand(pattern.finish(kept, groups, None, view))
        return view.matrix(mask).reshape(inputs, outputs)

    def pruned(self, inputs: int, outputs: int) -> int:
        """How many units go of so many inputs: single entries, of all outputs or of each, groups,
        or of n:m the m-groups that lose all but n.
        """
        if self.single:
            assert self.sparsity is not None
            return round(self.sparsity * inputs * (1 if self.per == "output" else outputs))
        spec = self._spec(inputs, outputs)
        share = self.pattern.max_sparsity if self.sparsity is None else self.sparsity
        return spec.units - spec.kept(share)

    def _spec(self, inputs: int, outputs: int) -> LeafSpec:
        view = self.view
        if view is None or view.matrix_shape != (inputs, outputs):  # some of the inputs
            view = View((inputs, outputs), (), (0,), (1,))
        self.pattern.check("kernel", view)
        return LeafSpec("kernel", self.pattern, view, self.sparsity)

    @property
    def span(self) -> int | None:
        """How many consecutive inputs a group takes; None where groups do not lie so."""
        if isinstance(self.pattern, NM) and self.pattern.method == "1d":
            return self.pattern.m
        if isinstance(self.pattern, Block):
            return self.pattern.rows
        return 1 if self.single else None


def _best(scores: Float[Array, "b n"], kept) -> Bool[Array, "b n"]:
    counts = jnp.broadcast_to(jnp.asarray(kept, jnp.int32), scores.shape[:1])
    return top_k_masks([Candidates(scores, counts)])[0]
