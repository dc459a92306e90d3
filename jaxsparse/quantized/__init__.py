"""Activations as codes of 8 bits, multiplied by packed int8 weights in integers."""

from jaxsparse.quantized.affine import Affine
from jaxsparse.quantized.calibrating import (
    Saturation,
    calibrate,
    dynamic,
    of_range,
    saturation,
)
from jaxsparse.quantized.codes import pack_codes
from jaxsparse.quantized.int8_dot import int8_dot
from jaxsparse.quantized.linear import linear
from jaxsparse.quantized.sparsify import sparsify

__all__ = [
    "Affine",
    "Saturation",
    "calibrate",
    "dynamic",
    "int8_dot",
    "linear",
    "of_range",
    "pack_codes",
    "saturation",
    "sparsify",
]
