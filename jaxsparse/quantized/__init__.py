"""Activations as codes of 8 bits, multiplied by packed int8 weights in integers."""

from jaxsparse.quantized.affine import Affine
from jaxsparse.quantized.int8_dot import int8_dot

__all__ = ["Affine", "int8_dot"]
