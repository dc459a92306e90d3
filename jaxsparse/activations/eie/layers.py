"""The nine layers of the EIE paper, drawn at random by their densities."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from jaxsparse.activations.eie.codec import CODES
from jaxsparse.activations.eie.simulator import Simulation, simulate
from jaxsparse.activations.eie.storage import expected_padding

PES = 64


class Layer(NamedTuple):
    """A fully connected layer as the paper's Table III gives it.

    Attributes:
      inputs, outputs: columns and rows of the matrix.
      weight_density, activation_density: fractions that are not zero.
      speedup: published, of EIE over a Core i7-5930K's dense product at batch 1.
    """

    inputs: int
    outputs: int
    weight_density: float
    activation_density: float
    speedup: float


LAYERS = {
    "Alex-6": Layer(9216, 4096, 0.09, 0.351, 248),
    "Alex-7": Layer(4096, 4096, 0.09, 0.353, 507),
    "Alex-8": Layer(4096, 1000, 0.25, 0.375, 115),
    "VGG-6": Layer(25088, 4096, 0.04, 0.183, 1018),
    "VGG-7": Layer(4096, 4096, 0.04, 0.375, 618),
    "VGG-8": Layer(4096, 1000, 0.23, 0.411, 92),
    "NT-We": Layer(4096, 600, 0.10, 1.0, 63),
    "NT-Wd": Layer(600, 8791, 0.11, 1.0, 98),
    "NT-LSTM": Layer(1201, 2400, 0.10, 1.0, 60),
}


class LayerReport(NamedTuple):
    """One layer simulated.

    Attributes:
      active: inputs that were not zero.
      entries, nonzeros: read by all elements; the difference is fillers.
      expected_padding: fillers a nonzero, by `expected_padding`.
      by_depth: the simulation for each depth of the queues.
    """

    active: int
    entries: int
    nonzeros: int
    expected_padding: float
    by_depth: dict[int, Simulation]

    @property
    def padding(self) -> float:
        """Fillers a nonzero, counted."""
        return self.entries / self.nonzeros - 1 if self.nonzeros else 0.0


def column_work(mask: Bool[np.ndarray, "columns rows"], pes: int) -> Int[np.ndarray, "columns pes"]:
    """Entries of each column in each element, fillers too, runs beginning anew in each.

    What `encode(...).work(...)` counts, without encoding.

    Args:
      mask: where the matrix is not zero, a row of the mask for each column.
      pes: elements that share the rows.
    """
    columns, rows = mask.shape
    local = -(-rows // pes)
    kept = np.zeros((columns, local, pes), bool)
    kept.reshape(columns, -1)[:, :rows] = mask
    place = np.arange(local, dtype=np.int32)[None, :, None]
    seen = np.maximum.accumulate(np.where(kept, place, -1), axis=1)
    before = np.concatenate([np.full_like(seen[:, :1], -1), seen[:, :-1]], axis=1)
    return np.sum(np.where(kept, (place - before - 1) // CODES + 1, 0), axis=1)


def simulate_layer(
    layer: Layer | str, depths: tuple[int, ...] = (1, 8), *, pes: int = PES, seed: int = 0
) -> LayerReport:
    """Draws where the weights of the active inputs are not zero, and counts cycles.

    Args:
      layer: a `Layer`, or the name of one in `LAYERS`.
      depths: of the queues.
      pes: processing elements.
      seed: of the draw.

    Raises:
      KeyError: an unknown name.

    Example:
      >>> from jaxsparse.activations import eie
      >>> report = eie.simulate_layer("NT-We")
      >>> {depth: round(s.efficiency, 1) for depth, s in report.by_depth.items()}
      {1: 0.4, 8: 0.8}
    """
    if isinstance(layer, str):
        if layer not in LAYERS:
            raise KeyError(f"{layer!r} is none of the layers {', '.join(LAYERS)}.")
        layer = LAYERS[layer]
    rng = np.random.default_rng(seed)
    active = round(layer.inputs * layer.activation_density)
    work, nonzeros = [], 0
    for begin in range(0, active, 512):  # the whole mask of VGG-6 would take 100 MB
        mask = rng.random((min(512, active - begin), layer.outputs), np.float32)
        mask = mask < layer.weight_density
        nonzeros += int(np.count_nonzero(mask))
        work.append(column_work(mask, pes))
    counted = np.concatenate(work) if work else np.zeros((0, pes), int)
    return LayerReport(
        active,
        int(counted.sum()),
        nonzeros,
        expected_padding(layer.weight_density, -(-layer.outputs // pes)),
        {depth: simulate(counted, depth) for depth in depths},
    )
