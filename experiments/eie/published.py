"""The layers of the EIE paper: cycles, balance and padding simulated, and their storage."""

from collections.abc import Sequence
from typing import Any

from jaxsparse.activations import eie
from jaxsparse.activations.eie.layers import LAYERS, PES
from jaxsparse.activations.eie.storage import ENTRY_BITS, POINTER_BITS, VALUE_BITS

__all__ = ["ELEMENTS", "LAYERS", "PES", "count"]

ELEMENTS = (1, 2, 4, 8, 16, 32, 64, 128, 256)  # for which padding is told
_CODES = 16


def count(name: str, depths: Sequence[int], pes: int = PES) -> dict[str, Any]:
    """One row: what is published of a layer, and what is counted.

    Args:
      name: of the layer.
      depths: of the queues.
      pes: processing elements.
    """
    layer = LAYERS[name]
    active = eie.simulate_layer(layer, tuple(depths), pes=pes)
    # All inputs active: every column of the matrix is stored, whether or not it is read.
    whole = eie.simulate_layer(layer._replace(activation_density=1.0), (), pes=pes)
    bits = eie.StorageBits(
        ENTRY_BITS * whole.nonzeros,
        ENTRY_BITS * (whole.entries - whole.nonzeros),
        POINTER_BITS * pes * (layer.inputs + 1),
        VALUE_BITS * _CODES,
    )
    return {
        "layer": name,
        **layer._asdict(),
        "active": active.active,
        "padding": active.padding,
        "expected_padding": active.expected_padding,
        "padding_by_pes": [
            eie.expected_padding(layer.weight_density, -(-layer.outputs // p)) for p in ELEMENTS
        ],
        "efficiency": {depth: run.efficiency for depth, run in active.by_depth.items()},
        "microseconds": {depth: run.microseconds for depth, run in active.by_depth.items()},
        "bits": bits._asdict(),
        "bits_per_weight": bits.total / (layer.inputs * layer.outputs),
    }
