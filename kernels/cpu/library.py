"""Finds, checks and registers the shared object with the kernels."""

import ctypes
import functools
from pathlib import Path

import jax

from jaxsparse.kernels import ffi

_FILE = "libjaxsparse_cpu.so"
_TARGETS = tuple(
    f"{storage}_{product}"
    for storage in ("block", "csc", "bitmap", "nm")
    for product in ("dot", "dot_transposed", "sampled")
)


@functools.cache
def _load() -> tuple[ctypes.CDLL | None, str | None]:
    """The library and None, or None and the reason why there is none."""
    # An editable installation has two folders: the sources' and the one with what
    # was built. The package's path names both.
    from jaxsparse.kernels import cpu

    places = [Path(folder) / _FILE for folder in cpu.__path__]
    found = next((place for place in places if place.exists()), None)
    if found is None:
        return None, (
            "the native kernels were not built: jaxsparse was installed without a C++17 "
            "compiler (install g++ or clang++, then install jaxsparse again)"
        )
    try:
        library = ctypes.CDLL(str(found))
    except OSError as error:
        return None, f"the native kernels cannot be loaded: {error}"
    for name in ("isa", "isa_error"):
        getattr(library, f"jaxsparse_{name}").restype = ctypes.c_char_p
    library.jaxsparse_fma.argtypes = [ctypes.c_long]
    library.jaxsparse_read.argtypes = [ctypes.c_void_p, ctypes.c_long]
    for name in ("fma", "read"):
        getattr(library, f"jaxsparse_{name}").restype = ctypes.c_double
    reason = ffi.version_reason(library) or _isa_reason(library)
    return (None, reason) if reason else (library, None)


def _isa_reason(library: ctypes.CDLL) -> str | None:
    error = library.jaxsparse_isa_error()
    return error.decode() if error else None


def available() -> str | None:
    """Says whether the native kernels can be used.

    Returns:
      None where they can, else the reason why not.
    """
    return _load()[1]


def load() -> ctypes.CDLL:
    """The shared object.

    Raises:
      RuntimeError: There are no native kernels here; the message says why.
    """
    library, reason = _load()
    if library is None:
        raise RuntimeError(reason)
    return library


def instruction_set() -> str:
    """The instruction set in use: "avx512", "avx2" or "portable"."""
    return load().jaxsparse_isa().decode()


@functools.cache
def register() -> None:
    """Makes the kernels known to XLA, once, and only after its CPU client started.

    Raises:
      RuntimeError: There are no native kernels here; the message says why.
    """
    library = load()
    jax.devices("cpu")
    for name in _TARGETS:
        capsule = jax.ffi.pycapsule(getattr(library, f"jaxsparse_{name}"))
        jax.ffi.register_ffi_target(f"jaxsparse_{name}", capsule, platform="cpu")
