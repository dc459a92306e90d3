"""The shared object with the kernels."""

import ctypes
import functools
from pathlib import Path

import jax

from jaxsparse.kernels import ffi

TARGETS = (
    *(
        f"jaxsparse_{storage}_{op}"
        for storage in ("block", "csc", "bitmap", "nm")
        for op in ("product", "sampled", "convolution")
    ),
    "jaxsparse_block_int8",
    *(f"jaxsparse_cloud_{op}" for op in ("pairs", "outer", "sort", "distinct", "map")),
)


@functools.cache
def _load() -> tuple[ctypes.CDLL | None, str | None]:
    """The library and None, or None and the reason why there is none."""
    return ffi.load(
        "jaxsparse.kernels.cpu",
        "libjaxsparse_cpu.so",
        "the native kernels",
        _absent(Path(__file__).parents[3]),
        check=_check,
    )


def _absent(folder: Path) -> str:
    """Why nothing was built, for a package that lies in a folder."""
    if (folder / "pyproject.toml").is_file():  # which no installation has beside the package
        return (
            f"jaxsparse is imported from the source folder {folder}, which has no built kernels; "
            f"pip install {folder}, where g++ or clang++ is, and an import of that would work"
        )
    return (
        "the native kernels were not built: jaxsparse was installed without a C++17 compiler or "
        "XLA's headers (install g++ or clang++, then install jaxsparse again)"
    )


def _check(library: ctypes.CDLL) -> str | None:
    """Declares what is called from here, and asks whether this processor will do."""
    for name in ("isa", "int8_isa", "isa_error"):
        getattr(library, f"jaxsparse_{name}").restype = ctypes.c_char_p
    library.jaxsparse_fma.argtypes = [ctypes.c_long]
    library.jaxsparse_read.argtypes = [ctypes.c_void_p, ctypes.c_long]
    for name in ("fma", "read"):
        getattr(library, f"jaxsparse_{name}").restype = ctypes.c_double
    error = library.jaxsparse_isa_error()
    return error.decode() if error else None


def missing() -> str | None:
    """The reason why the native kernels cannot run on this machine, or None."""
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


def int8_instruction_set() -> str:
    """What multiplies codes: that, or "avx512vnni" or "avxvnni", which only integers need."""
    return load().jaxsparse_int8_isa().decode()


@functools.cache
def register() -> None:
    """Makes the kernels known to XLA, once, and only after its CPU client started.

    Raises:
      RuntimeError: There are no native kernels here; the message says why.
    """
    library = load()
    jax.devices("cpu")
    ffi.register(library, TARGETS, "cpu")
