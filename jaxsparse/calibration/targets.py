"""What a one-shot method has to keep of one kernel."""

import dataclasses
from typing import Any, Literal

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxsparse.patterns.base import Pattern, Unstructured
from jaxsparse.patterns.groups import Block
from jaxsparse.patterns.nm import NM
from jaxsparse.patterns.rules import Rule
from jaxsparse.patterns.views import View
from jaxsparse.pruning.prune import compute_masks
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
        if self.sparsity is None and self.single:
            raise ValueError("Unstructured() needs a sparsity, such as 0.5")
        if self.sparsity is not None and not 0 <= self.sparsity < 1:
            raise ValueError(f"sparsity {self.sparsity} is not in [0, 1); 0.5 would work")

    @property
    def single(self) -> bool:
        """Whether any entry may be kept."""
        return isinstance(self.pattern, Unstructured)

    def mask(
        self, scores: Float[Array, "k n"], pruned: Int[Array, ""] | None = None
    ) -> Bool[Array, "k n"]:
        """Keeps what scores highest; of equal scores what comes first.

        Args:
          scores: at least zero, one for every entry; groups are scored by what their pattern
            reduces them to.
          pruned: how many entries go, of the kernel or of each output, in place of what
            `sparsity` says; where any entry may be kept.

        Raises:
          ValueError: the pattern does not fit the shape.
        """
        inputs, outputs = scores.shape
        if self.single:
            per_output = self.per == "output"
            slices = scores.T if per_output else scores.reshape(1, -1)
            kept = slices.shape[1] - (self.pruned(inputs, outputs) if pruned is None else pruned)
            counts = jnp.broadcast_to(jnp.asarray(kept, jnp.int32), slices.shape[:1])
            mask = top_k_masks([Candidates(slices, counts)])[0]
            return mask.T if per_output else mask.reshape(scores.shape)
        view = self.view
        if view is None or view.matrix_shape != scores.shape:  # some of the inputs
            view = View((inputs, outputs), (), (0,), (1,))
        axes: dict[str, Any] = {"in_axis": view.inputs, "out_axis": view.outputs}
        axes["batch_axis"] = view.batch
        one = view.leaf(scores.reshape(*view.batch_shape, inputs, outputs))
        mask = compute_masks({"kernel": one}, [Rule("kernel", self.pattern, self.sparsity, **axes)])
        return view.matrix(mask["kernel"]).reshape(inputs, outputs)

    def pruned(self, inputs: int, outputs: int) -> int:
        """How many single entries go of so many inputs, of all outputs or of each."""
        assert self.sparsity is not None
        return round(self.sparsity * inputs * (1 if self.per == "output" else outputs))

    @property
    def span(self) -> int:
        """How many inputs lie in a group.

        Raises:
          ValueError: of a pattern for which that is not known.
        """
        if isinstance(self.pattern, NM) and self.pattern.method == "1d":
            return self.pattern.m
        if isinstance(self.pattern, Block):
            return self.pattern.rows
        if self.single:
            return 1
        raise ValueError(
            f"how many inputs a group of {self.pattern} spans is not known: Unstructured(), "
            "NM(n, m) and Block(k, n) would work"
        )
