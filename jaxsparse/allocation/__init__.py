"""How sparse each layer is to be: what layers cost, how they take pruning, and the search."""

from jaxsparse.allocation.allocation import Allocation
from jaxsparse.allocation.amc.agent import DDPG
from jaxsparse.allocation.amc.result import AMC, Episodes
from jaxsparse.allocation.amc.search import amc
from jaxsparse.allocation.costs.flops import Cost, Flops
from jaxsparse.allocation.costs.latency import Latency
from jaxsparse.allocation.costs.latency_report import (
    LatencyReport,
    LatencyRow,
    Network,
    latency_report,
)
from jaxsparse.allocation.costs.program import Layer, layers
from jaxsparse.allocation.costs.stored import Bytes
from jaxsparse.allocation.costs.table import LatencyTable
from jaxsparse.allocation.evaluations import Searched, Tried
from jaxsparse.allocation.evolution import evolve
from jaxsparse.allocation.exact import exact
from jaxsparse.allocation.losses import losses
from jaxsparse.allocation.narrowing import narrow, unit_masks, unit_scores
from jaxsparse.allocation.netadapt.result import NetAdapt
from jaxsparse.allocation.netadapt.rules import reduction_bound
from jaxsparse.allocation.netadapt.search import netadapt
from jaxsparse.allocation.netadapt.tuning import tuner
from jaxsparse.allocation.restarts import search
from jaxsparse.allocation.sensitivity.changes import Change, Curve, Joint, Target
from jaxsparse.allocation.sensitivity.scan import Cell, scan
from jaxsparse.allocation.sensitivity.table import Sensitivity
from jaxsparse.allocation.weights import Weights
from jaxsparse.allocation.widths import exact_widths

__all__ = [
    "AMC",
    "DDPG",
    "Allocation",
    "Bytes",
    "Cell",
    "Change",
    "Cost",
    "Curve",
    "Episodes",
    "Flops",
    "Joint",
    "Latency",
    "LatencyReport",
    "LatencyRow",
    "LatencyTable",
    "Layer",
    "NetAdapt",
    "Network",
    "Searched",
    "Sensitivity",
    "Target",
    "Tried",
    "Weights",
    "amc",
    "evolve",
    "exact",
    "exact_widths",
    "latency_report",
    "layers",
    "losses",
    "narrow",
    "netadapt",
    "reduction_bound",
    "scan",
    "search",
    "tuner",
    "unit_masks",
    "unit_scores",
]
