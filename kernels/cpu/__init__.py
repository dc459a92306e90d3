"""Native CPU kernels: C++ microkernels behind the XLA FFI, on XLA's own threads.

Raw arrays in, raw arrays out, under `jax.jit` too. They compute in float32
whatever the weights are stored as (float32, bfloat16, int8), for AVX-512,
AVX2 with FMA, or any processor the compiler knows, chosen when the library
is loaded (JAXSPARSE_CPU_ISA=avx512|avx2|portable names one instead).

The shared object is built at installation where a C++17 compiler is found.
`available` says why it is missing otherwise.
"""

from jaxsparse.kernels.cpu.library import available, instruction_set
from jaxsparse.kernels.cpu.limits import fma_peak, read_bandwidth
from jaxsparse.kernels.cpu.products import (
    bitmap_dot,
    bitmap_dot_transposed,
    bitmap_sampled,
    block_dot,
    block_dot_transposed,
    block_sampled,
    csc_dot,
    csc_dot_transposed,
    csc_sampled,
    nm_bits,
    nm_dot,
    nm_dot_transposed,
    nm_sampled,
    supports,
)
from jaxsparse.kernels.cpu.validation import validate_block, validate_csc, validate_nm

__all__ = [
    "available",
    "bitmap_dot",
    "bitmap_dot_transposed",
    "bitmap_sampled",
    "block_dot",
    "block_dot_transposed",
    "block_sampled",
    "csc_dot",
    "csc_dot_transposed",
    "csc_sampled",
    "fma_peak",
    "instruction_set",
    "nm_bits",
    "nm_dot",
    "nm_dot_transposed",
    "nm_sampled",
    "read_bandwidth",
    "supports",
    "validate_block",
    "validate_csc",
    "validate_nm",
]
