"""Whole heads and neurons pruned under a budget, without training: Kwon et al. 2022.

`prune` does it all. Its parts stand alone, on arrays: `unit_gradients`, `search_costs`,
`search_table` and `knapsack`, `rearrange`, `rescale`, `fit_latency`.
"""

from jaxsparse.recipes.retrain_free.costs import LatencyFit, fit_latency
from jaxsparse.recipes.retrain_free.fisher import unit_gradients
from jaxsparse.recipes.retrain_free.pruning import (
    PrunedGroup,
    RetrainFree,
    RetrainFreeReport,
    prune,
)
from jaxsparse.recipes.retrain_free.rearranging import rearrange
from jaxsparse.recipes.retrain_free.search import knapsack, search_costs, search_table
from jaxsparse.recipes.retrain_free.tuning import rescale, tuned_scales

__all__ = [
    "LatencyFit",
    "PrunedGroup",
    "RetrainFree",
    "RetrainFreeReport",
    "fit_latency",
    "knapsack",
    "prune",
    "rearrange",
    "rescale",
    "search_costs",
    "search_table",
    "tuned_scales",
    "unit_gradients",
]
