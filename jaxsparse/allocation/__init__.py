"""How sparse each layer is to be: what layers cost, how they take pruning, and the search."""

from jaxsparse.allocation.narrowing import narrow, unit_masks, unit_scores

__all__ = ["narrow", "unit_masks", "unit_scores"]
