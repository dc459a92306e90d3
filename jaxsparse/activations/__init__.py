"""Zeros in what flows: sparse convolution of point clouds, and EIE in numbers."""

from jaxsparse.activations import eie
from jaxsparse.activations.bounds import Bounds
from jaxsparse.activations.convolution import sparse_conv
from jaxsparse.activations.dense import from_dense, to_dense
from jaxsparse.activations.faults import checked
from jaxsparse.activations.grouping import (
    Group,
    Grouping,
    PairLists,
    group_pairs,
    plan_groups,
)
from jaxsparse.activations.maps import KernelMap, kernel_map, transposed_map
from jaxsparse.activations.pooling import global_pool, pool
from jaxsparse.activations.sites import Sites, sites
from jaxsparse.activations.tensor import SparseTensor, concatenate, sparse_tensor
from jaxsparse.activations.tuning import Timing, tune_dataflow
from jaxsparse.activations.voxels import Voxels, coalesce, voxelize
from jaxsparse.activations.windows import Window, convolved_shape

__all__ = [
    "Bounds",
    "Group",
    "Grouping",
    "KernelMap",
    "PairLists",
    "Sites",
    "SparseTensor",
    "Timing",
    "Voxels",
    "Window",
    "checked",
    "coalesce",
    "concatenate",
    "convolved_shape",
    "eie",
    "from_dense",
    "global_pool",
    "group_pairs",
    "kernel_map",
    "plan_groups",
    "pool",
    "sites",
    "sparse_conv",
    "sparse_tensor",
    "to_dense",
    "transposed_map",
    "tune_dataflow",
    "voxelize",
]
