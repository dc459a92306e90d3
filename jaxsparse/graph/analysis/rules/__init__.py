"""What each primitive does, to channels and to constants, and how it runs on smaller arrays."""

from jaxsparse.graph.analysis.rules import (
    elementwise,
    indexing,
    parts,
    products,
    reductions,
    shapes,
)

__all__ = ["elementwise", "indexing", "parts", "products", "reductions", "shapes"]
