"""What the agent sees of a layer."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float

from jaxsparse.allocation.costs.program import Layer

# index, n, c, h, w, stride, k, FLOPs; reduced, rest and the last action come with the walk.
STATIC = 8


def features_of(
    paths: Sequence[Sequence[str]], layers: Sequence[Layer]
) -> tuple[Float[np.ndarray, "steps 8"], Float[np.ndarray, " steps"]]:
    """The layer of each step as the agent sees it, and what that layer costs.

    index, n, c, h, w, stride, k, FLOPs: which layer of the program it is, its outputs and inputs,
    the sides of what it reads, stride and window, multiplications. The layer of a group is the
    first that reads it, the layer of a leaf its first product. A program knows how many places a
    product has, not how they lie: h and w are the root of their number, which is exact where images
    are square, and of anything else still a size.

    Args:
      paths: by step the weights whose layer it may be.
      layers: of the program.
    """
    rows, costs = [], []
    for mine in paths:
        index, layer = next((i, layer) for i, layer in enumerate(layers) if layer.path in mine)
        stride = math.prod(layer.stride) ** (1 / max(len(layer.stride), 1))
        window = math.prod(layer.window) ** (1 / max(len(layer.window), 1))
        size = math.prod(layer.shape)
        # Of a kernel in the usual layout: window, inputs, outputs.
        outputs = layer.shape[-1] if layer.shape else 1
        inputs = size / max(outputs * math.prod(layer.window), 1)
        places = layer.macs / max(size * layer.calls, 1) * math.prod(layer.stride)
        side = math.sqrt(places)
        stride = stride if layer.op != "dense" else 0
        rows.append([index, outputs, inputs, side, side, stride, window, layer.macs])
        costs.append(layer.macs)
    return np.array(rows, np.float64).reshape(-1, STATIC), np.array(costs, np.float64)


def meeting(paths: Sequence[Sequence[str]], names: Sequence[str], layers: Sequence[Layer]):
    """Pairs of steps that meet in a layer, which reads one and writes the other."""
    number: Mapping[str, int] = {name: step for step, name in enumerate(names)}
    pairs = {
        (number[layer.reads], number[layer.writes])
        for layer in layers
        if layer.reads in number and layer.writes in number and layer.reads != layer.writes
    }
    return sorted({(min(pair), max(pair)) for pair in pairs})
