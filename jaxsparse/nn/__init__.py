"""Layers that train packed from the start, and surgery that puts them into a model."""

from jaxsparse.nn import clouds, linen, nnx
from jaxsparse.nn.structures import random_structure
from jaxsparse.nn.surgery import Replacement, Surgery, replace

__all__ = ["Replacement", "Surgery", "clouds", "linen", "nnx", "random_structure", "replace"]
