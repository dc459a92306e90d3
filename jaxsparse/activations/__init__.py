"""Zeros in what flows: sparse activations, and the accelerators that skip them."""

from jaxsparse.activations import eie

__all__ = ["eie"]
