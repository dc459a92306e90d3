"""Finds, checks and registers the shared object that calls cuSPARSELt."""

import ctypes
import functools
import importlib.util
from pathlib import Path

import jax

from jaxsparse.kernels import ffi

_FILE = "libjaxsparse_cusparselt.so"
_CUSPARSELT = "libcusparseLt.so.0"
_TARGETS = "compress", "multiply"


@functools.cache
def _load() -> tuple[ctypes.CDLL | None, str | None]:
    """The library and None, or None and the reason why there is none."""
    from jaxsparse.kernels import cusparselt

    places = [Path(folder) / _FILE for folder in cusparselt.__path__]
    found = next((place for place in places if place.exists()), None)
    if found is None:
        return None, (
            "it was not built: jaxsparse was installed without CUDA's headers and cusparseLt.h "
            "(install CUDA's toolkit and nvidia-cusparselt-cu13, then install jaxsparse again)"
        )
    try:
        _load_cusparselt()
        library = ctypes.CDLL(str(found))
    except OSError as error:
        return None, f"cuSPARSELt cannot be loaded: {error}"
    reason = _version_reason(library) or ffi.version_reason(library)
    return (None, reason) if reason else (library, None)


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


def available() -> str | None:
    """Says whether cuSPARSELt can be called from here.

    Returns:
      None where it can, else the reason why not.
    """
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
    for name in _TARGETS:
        target = f"jaxsparse_cusparselt_{name}"
        capsule = jax.ffi.pycapsule(getattr(library, target))
        jax.ffi.register_ffi_target(target, capsule, platform="CUDA")
