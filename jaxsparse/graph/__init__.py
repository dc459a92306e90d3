"""The channel graph: which axes of which weights of a traced model are the same channels."""

from jaxsparse.graph.axes import Cause
from jaxsparse.graph.channels import Channels, Factor, Group, Op, Piece, Pinned, Place, channels
from jaxsparse.graph.plot import plot
from jaxsparse.graph.search import PermutationSearch, search_permutation

__all__ = [
    "Cause",
    "Channels",
    "Factor",
    "Group",
    "Op",
    "PermutationSearch",
    "Piece",
    "Pinned",
    "Place",
    "channels",
    "plot",
    "search_permutation",
]
