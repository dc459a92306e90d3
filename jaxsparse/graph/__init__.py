"""The channel graph: which axes of which weights of a traced model are the same channels."""

from jaxsparse.graph.analysis.channels import Channels, Group, Pinned, Place, channels
from jaxsparse.graph.analysis.pieces import Cause, Factor, Piece
from jaxsparse.graph.analysis.values import Op
from jaxsparse.graph.permutation.asp import ASP, asp, asp_rules
from jaxsparse.graph.permutation.permute import (
    PermutationReport,
    PermutedGroup,
    PermutedLeaf,
    permute,
)
from jaxsparse.graph.permutation.search import PermutationSearch, search_permutation
from jaxsparse.graph.picture.plot import plot
from jaxsparse.graph.shrinking.modules import shrink_model
from jaxsparse.graph.shrinking.shrink import shrink
from jaxsparse.graph.shrinking.shrink_report import (
    Crossing,
    PinnedChannels,
    ShrinkReport,
    ShrunkGroup,
    Stay,
)
from jaxsparse.graph.structured.finding import structure
from jaxsparse.graph.structured.resolving import KeptUnits, Structure, StructureReport
from jaxsparse.graph.structured.units import Member, StructuredGroup

__all__ = [
    "ASP",
    "Cause",
    "Channels",
    "Crossing",
    "Factor",
    "Group",
    "KeptUnits",
    "Member",
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
    "Structure",
    "StructureReport",
    "StructuredGroup",
    "asp",
    "asp_rules",
    "channels",
    "permute",
    "plot",
    "search_permutation",
    "shrink",
    "shrink_model",
    "structure",
]
