"""Layers on sparse tensors: `clouds.nnx` and `clouds.linen`, the same in both Flaxes."""

from jaxsparse.nn.clouds import linen, nnx

__all__ = ["linen", "nnx"]
