"""What each primitive does to channels: one rule a primitive.

A rule gets the analysis, the equation and a Value for every operand, unifies and
pins terms, and returns a Value for every result. The promise of a rule: if all
free atoms are permuted, in the operands as in the results, the primitive still
maps the ones to the others. A primitive without a rule pins all that it touches.
"""

from jaxsparse.graph.rules import elementwise, indexing, products, shapes
from jaxsparse.graph.rules.registry import RULES, Rule, sizes

__all__ = ["RULES", "Rule", "elementwise", "indexing", "products", "shapes", "sizes"]
