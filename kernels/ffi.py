"""Shared objects behind the XLA FFI: found, checked, registered and called."""

import ctypes
import importlib
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jax
import numpy as np


def load(
    package: str,
    file: str,
    name: str,
    absent: str,
    prepare: Callable[[], None] = lambda: None,
    check: Callable[[ctypes.CDLL], str | None] = lambda library: None,
) -> tuple[ctypes.CDLL | None, str | None]:
    """A shared object and None, or None and the reason why there is none.

    Args:
      package: in whose folders it lies. An editable installation has two: the sources' and
        the one with what was built.
      file: its name.
      name: what it is called in an error.
      absent: the reason where it was not built.
      prepare: called before it is loaded; it too may raise OSError.
      check: returns the reason why what was loaded cannot be used, or None.
    """
    places = [Path(folder) / file for folder in importlib.import_module(package).__path__]
    found = next((place for place in places if place.exists()), None)
    if found is None:
        return None, absent
    try:
        prepare()
        library = ctypes.CDLL(str(found))
    except OSError as error:
        return None, f"{name} cannot be loaded: {error}"
    reason = version_reason(library) or check(library)
    return (None, reason) if reason else (library, None)


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


def register(library: ctypes.CDLL, targets: Iterable[str], platform: str) -> None:
    """Makes handlers known to XLA under their own names."""
    for target in targets:
        capsule = jax.ffi.pycapsule(getattr(library, target))
        jax.ffi.register_ffi_target(target, capsule, platform=platform)


def call(target: str, shape, dtype, *operands: jax.Array, **attributes: Any) -> jax.Array:
    """What a registered handler makes of the operands; under `jax.vmap` one after another."""
    result = jax.ShapeDtypeStruct(shape, dtype)
    function = jax.ffi.ffi_call(target, result, vmap_method="sequential")
    return function(
        *operands, **{name: np.asarray(value)[()] for name, value in attributes.items()}
    )
