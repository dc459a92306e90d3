"""What a one-shot method has to keep of one kernel."""

import dataclasses
from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxsparse.patterns.base import Pattern, Unstructured
from jaxsparse.patterns.groups import Block
from jaxsparse.patterns.nm import NM
from jaxsparse.patterns.rules import Rule
from jaxsparse.pruning.prune import compute_masks
from jaxsparse.top_k import Candidates, top_k_masks


@dataclasses.dataclass(frozen=True)
class Target:
    """A pattern, how sparse, and what competes for it in a kernel (K, N).

    Attributes:
      pattern: `Unstructured()`, `NM(n, m)`, `Block(k, n)` or any other.
      sparsity: fraction of zeros; None for a pattern that fixes it.
      per: "layer", or "output": every column of an unstructured kernel keeps as many, as
        Wanda has it.

    Example:
      >>> target = Target(NM(2, 4))
      >>> target.mask(jnp.array([[1.0], [4.0], [2.0], [3.0]])).ravel().tolist()
      [False, True, False, True]
    """

    pattern: Pattern
    sparsity: float | None = None
    per: Literal["layer", "output"] = "layer"

    def __post_init__(self):
        if self.per not in ("layer", "output"):
            raise ValueError(f"per={self.per!r}: 'layer' or 'output' would work")
        if self.per == "output" and not isinstance(self.pattern, Unstructured):
            raise ValueError(
                f"per='output' is for Unstructured(), whose entries compete; groups of "
                f"{self.pattern} compete as the pattern says, with per='layer'"
            )
        if isinstance(self.pattern, Unstructured) and self.sparsity is None:
            raise ValueError("Unstructured() needs a sparsity, such as 0.5")

    def mask(self, scores: Float[Array, "k n"]) -> Bool[Array, "k n"]:
        """Keeps what scores highest; of equal scores what comes first.

        Args:
          scores: at least zero, one for every entry; groups are scored by the mean of their
            entries.

        Raises:
          ValueError: the pattern does not fit the shape.
        """
        if self.per == "output":
            inputs, outputs = scores.shape
            kept = jnp.full(outputs, inputs - round(self._share * inputs), jnp.int32)
            return top_k_masks([Candidates(scores.T, kept)])[0].T
        rule = Rule("kernel", self.pattern, self.sparsity, in_axis=0, out_axis=1)
        return compute_masks({"kernel": scores}, [rule])["kernel"]

    @property
    def _share(self) -> float:
        return 0.0 if self.sparsity is None else self.sparsity

    @property
    def span(self) -> int:
        """How many inputs lie in a group.

        Raises:
          ValueError: of a pattern for which that is not known.
        """
        if isinstance(self.pattern, NM):
            return self.pattern.m
        if isinstance(self.pattern, Block):
            return self.pattern.rows
        if isinstance(self.pattern, Unstructured):
            return 1
        raise ValueError(
            f"how many inputs a group of {self.pattern} spans is not known: Unstructured(), "
            "NM(n, m) and Block(k, n) would work"
        )

    @property
    def grouped(self) -> bool:
        """Whether entries are kept and pruned in groups, not one by one."""
        return not isinstance(self.pattern, NM | Unstructured)

    def rows_at_once(self, size: int) -> int:
        """The most inputs up to `size` that hold whole groups, at least one group."""
        return self.span * max(1, size // self.span)
