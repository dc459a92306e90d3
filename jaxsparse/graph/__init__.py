"""The channel graph: which axes of which weights of a traced model are the same channels."""

from jaxsparse.graph.asp import ASP, asp, asp_rules
from jaxsparse.graph.axes import Cause, Factor, Piece
from jaxsparse.graph.channels import Channels, Group, Pinned, Place, channels
from jaxsparse.graph.modules import shrink_model
from jaxsparse.graph.permute import PermutationReport, PermutedGroup, PermutedLeaf, permute
from jaxsparse.graph.plot import plot
from jaxsparse.graph.search import PermutationSearch, search_permutation
from jaxsparse.graph.shrink import shrink
from jaxsparse.graph.shrink_report import PinnedChannels, ShrinkReport, ShrunkGroup, Stay
from jaxsparse.graph.values import Op

__all__ = [
    "ASP",
    "Cause",
    "Channels",
    "Factor",
    "Group",
    "Op",
    "PermutationReport",
    "PermutationSearch",
    "PermutedGroup",
    "PermutedLeaf",
    "Piece",
    "Pinned",
    "PinnedChannels",
    "Place",
    "ShrinkReport",
    "ShrunkGroup",
    "Stay",
    "asp",
    "asp_rules",
    "channels",
    "permute",
    "plot",
    "search_permutation",
    "shrink",
    "shrink_model",
]
