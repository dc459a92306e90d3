"""Finds, checks and registers the shared object that calls cuSPARSELt."""

import ctypes
import functools
import importlib.util
from pathlib import Path

from jaxsparse.kernels import ffi

_CUSPARSELT = "libcusparseLt.so.0"
_TARGETS = "jaxsparse_cusparselt_compress", "jaxsparse_cusparselt_multiply"


@functools.cache
def _load() -> tuple[ctypes.CDLL | None, str | None]:
    """The library and None, or None and the reason why there is none."""
    return ffi.load(
        "jaxsparse.kernels.cusparselt",
        "libjaxsparse_cusparselt.so",
        "cuSPARSELt",
        "it was not built: jaxsparse was installed without CUDA's headers and cusparseLt.h "
        "(install CUDA's toolkit and nvidia-cusparselt-cu13, then install jaxsparse again)",
        prepare=_load_cusparselt,
        check=_version_reason,
    )


def _load_cusparselt() -> None:
    """Loads cuSPARSELt from its wheel, or leaves it to the system's search path."""
    nvidia = importlib.util.find_spec("nvidia")
    for folder in (nvidia and nvidia.submodule_search_locations) or []:
        for path in sorted(Path(folder).glob(f"*/lib/{_CUSPARSELT}")):
            ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
            return


def _version_reason(library: ctypes.CDLL) -> str | None:
    """Its structures may change in size between minor versions: calls would corrupt memory."""
    built = divmod(library.jaxsparse_cusparselt_built(), 1000)
    running = divmod(library.jaxsparse_cusparselt_running(), 1000)
    if built == running:
        return None
    return (
        f"jaxsparse was built with cuSPARSELt {built[0]}.{built[1]}, {running[0]}.{running[1]} "
        "is loaded here: install jaxsparse again beside that"
    )


def missing() -> str | None:
    """The reason why cuSPARSELt cannot be called from here, or None."""
    return _load()[1]


@functools.cache
def register() -> None:
    """Makes the handlers known to XLA, once.

    Raises:
      RuntimeError: There are none here; the message says why.
    """
    library, reason = _load()
    if library is None:
        raise RuntimeError(f"cuSPARSELt cannot be called: {reason}.")
    ffi.register(library, _TARGETS, "CUDA")
