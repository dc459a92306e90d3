"""A functional sparsity toolkit for JAX and Flax."""

import importlib
import typing

from jaxsparse import activations, allocation, calibration, graph, nn, quantized, recipes
from jaxsparse.export.onnx import export_onnx
from jaxsparse.export.program import ExportError
from jaxsparse.export.safetensors import load_safetensors, save_safetensors
from jaxsparse.export.stablehlo import export_stablehlo, load_stablehlo
from jaxsparse.kernels import implementations
from jaxsparse.packed.base import is_packed
from jaxsparse.packed.block_sparse import BlockSparse
from jaxsparse.packed.nm_sparse import NMSparse
from jaxsparse.packed.packing import (
    merge_packed,
    pack,
    pack_params,
    split_packed,
    unpack,
    unpack_params,
)
from jaxsparse.packed.singles import CSC, CSR, Bitmap
from jaxsparse.patterns.base import Pattern, Unstructured
from jaxsparse.patterns.groups import Block, Channel
from jaxsparse.patterns.nm import NM
from jaxsparse.patterns.rules import Rule
from jaxsparse.products.sparse_dot import sparse_dot
from jaxsparse.products.sparsify import sparsify
from jaxsparse.products.traced_axes import read_axes
from jaxsparse.pruning.choosers import ChoiceContext, Chooser
from jaxsparse.pruning.depth import alpha_pruning, arithmetic_progression
from jaxsparse.pruning.distributions import Distribution, erk, global_, targets, uniform
from jaxsparse.pruning.masking import apply_masks, mask_params, masked
from jaxsparse.pruning.movement import importance_threshold, movement
from jaxsparse.pruning.overlap import MaskOverlap, mask_overlap
from jaxsparse.pruning.prune import compute_masks, prune
from jaxsparse.pruning.pruned import PrunedState, pruned
from jaxsparse.pruning.regrowth import regrow_gradient, regrow_random, straight_through
from jaxsparse.pruning.regularizers import add_group_lasso, add_l1, prox_group_lasso
from jaxsparse.pruning.schedules import (
    Schedule,
    constant,
    cosine,
    cubic,
    exponential,
    given,
    iterative,
    linear,
    one_shot,
)
from jaxsparse.pruning.scores import (
    Score,
    ScoreContext,
    gradient,
    magnitude,
    random,
    saliency,
    saliency_momentum,
)
from jaxsparse.pruning.state import PruneState, masks, replace_masks
from jaxsparse.reports import LeafReport, Report, mask_picture, report
from jaxsparse.trees import leaves_by_path

if typing.TYPE_CHECKING:
    from jaxsparse import checkpoint

__version__ = "0.1.0"

__all__ = [
    "CSC",
    "CSR",
    "NM",
    "Bitmap",
    "Block",
    "BlockSparse",
    "Channel",
    "ChoiceContext",
    "Chooser",
    "Distribution",
    "ExportError",
    "LeafReport",
    "MaskOverlap",
    "NMSparse",
    "Pattern",
    "PruneState",
    "PrunedState",
    "Report",
    "Rule",
    "Schedule",
    "Score",
    "ScoreContext",
    "Unstructured",
    "activations",
    "add_group_lasso",
    "add_l1",
    "allocation",
    "alpha_pruning",
    "apply_masks",
    "arithmetic_progression",
    "calibration",
    "checkpoint",
    "compute_masks",
    "constant",
    "cosine",
    "cubic",
    "erk",
    "exponential",
    "export_onnx",
    "export_stablehlo",
    "given",
    "global_",
    "gradient",
    "graph",
    "implementations",
    "importance_threshold",
    "is_packed",
    "iterative",
    "leaves_by_path",
    "linear",
    "load_safetensors",
    "load_stablehlo",
    "magnitude",
    "mask_overlap",
    "mask_params",
    "mask_picture",
    "masked",
    "masks",
    "merge_packed",
    "movement",
    "nn",
    "one_shot",
    "pack",
    "pack_params",
    "prox_group_lasso",
    "prune",
    "pruned",
    "quantized",
    "random",
    "read_axes",
    "recipes",
    "regrow_gradient",
    "regrow_random",
    "replace_masks",
    "report",
    "saliency",
    "saliency_momentum",
    "save_safetensors",
    "sparse_dot",
    "sparsify",
    "split_packed",
    "straight_through",
    "targets",
    "uniform",
    "unpack",
    "unpack_params",
]


def __getattr__(name: str) -> typing.Any:
    # Orbax takes as long to import as all the rest, and most programs never ask for it.
    if name == "checkpoint":
        return importlib.import_module("jaxsparse.checkpoint")
    raise AttributeError(f"module 'jaxsparse' has no attribute {name!r}")
