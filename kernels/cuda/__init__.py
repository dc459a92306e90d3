"""Kernels of NVIDIA's own libraries."""
