"""EIE: compressed fully connected layers that skip zero activations, in numbers.

Encode a matrix as the accelerator stores it, account for its bits, and count the cycles
that its processing elements take (Han et al., 2016, https://arxiv.org/abs/1602.01528).
"""

from jaxsparse.activations.eie.codebook import kmeans, quantize
from jaxsparse.activations.eie.codec import EIEMatrix, Stream, decode, encode
from jaxsparse.activations.eie.layers import (
    LAYERS,
    Layer,
    LayerReport,
    column_work,
    simulate_layer,
)
from jaxsparse.activations.eie.simulator import Simulation, simulate
from jaxsparse.activations.eie.storage import StorageBits, expected_padding, storage_bits

__all__ = [
    "LAYERS",
    "EIEMatrix",
    "Layer",
    "LayerReport",
    "Simulation",
    "StorageBits",
    "Stream",
    "column_work",
    "decode",
    "encode",
    "expected_padding",
    "kmeans",
    "quantize",
    "simulate",
    "simulate_layer",
    "storage_bits",
]
