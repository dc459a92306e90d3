"""What every shared object behind the XLA FFI must answer before it is registered."""

import ctypes
import re
from pathlib import Path

import jax


def version_reason(library: ctypes.CDLL) -> str | None:
    """The reason why this jaxlib would refuse a library, or None.

    XLA checks the version itself, but a refusal before its CPU client starts
    makes every later JAX operation fail: look before registering.

    Args:
      library: tells by `jaxsparse_ffi_major` and `jaxsparse_ffi_minor` which version of
        XLA's FFI it was built with.
    """
    built = library.jaxsparse_ffi_major(), library.jaxsparse_ffi_minor()
    header = Path(jax.ffi.include_dir()) / "xla" / "ffi" / "api" / "c_api.h"
    if not header.exists():
        return None
    defined = dict(re.findall(r"#define XLA_FFI_API_(MAJOR|MINOR) (\d+)", header.read_text()))
    if len(defined) < 2:
        return None
    running = int(defined["MAJOR"]), int(defined["MINOR"])
    if running[0] == built[0] and running[1] >= built[1]:
        return None
    return (
        f"it was built with XLA FFI {built[0]}.{built[1]}, this jaxlib has "
        f"{running[0]}.{running[1]}: install jaxsparse again beside that"
    )
