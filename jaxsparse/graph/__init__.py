"""The channel graph: which axes of which weights of a traced model are the same channels."""

from jaxsparse.graph.axes import Cause
from jaxsparse.graph.channels import Channels, Factor, Group, Op, Piece, Pinned, Place, channels
from jaxsparse.graph.modules import shrink_model
from jaxsparse.graph.permute import PermutationReport, PermutedGroup, PermutedLeaf, permute
from jaxsparse.graph.shrink import ShrinkReport, ShrunkGroup, shrink

__all__ = [
    "Cause",
    "Channels",
    "Factor",
    "Group",
    "Op",
    "PermutationReport",
    "PermutedGroup",
    "PermutedLeaf",
    "Piece",
    "Pinned",
    "Place",
    "ShrinkReport",
    "ShrunkGroup",
    "channels",
    "permute",
    "shrink",
    "shrink_model",
]
