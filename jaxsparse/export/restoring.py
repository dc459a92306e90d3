"""Libraries as they were, after code that exchanges their functions."""

import contextlib
import inspect
import sys
import types
from collections.abc import Iterator
from typing import Any

_MISSING = object()


@contextlib.contextmanager
def restoring(*libraries: str) -> Iterator[None]:
    """Undoes what a block assigns to public modules and classes of libraries.

    Attributes that begin with an underscore, but for `__call__`, are left: libraries keep
    caches there. So are modules that the block imports.

    Args:
      libraries: names of packages; of what is imported when the block begins.

    Example:
      >>> import math
      >>> sine = math.sin
      >>> with restoring("math"):
      ...     math.sin, math.extra = None, 1
      >>> math.sin is sine, hasattr(math, "extra")
      (True, False)
    """
    before = [(owner, _public(owner)) for owner in _owners(libraries)]
    try:
        yield
    finally:
        for owner, attributes in before:
            now = _public(owner)
            for name in attributes.keys() | now.keys():
                old, new = attributes.get(name, _MISSING), now.get(name, _MISSING)
                if old is new or isinstance(new, types.ModuleType):
                    continue
                if old is _MISSING:
                    delattr(owner, name)
                else:
                    setattr(owner, name, old)


def _owners(libraries: tuple[str, ...]) -> list[Any]:
    """The public modules of libraries, and the classes that they show."""
    modules = [
        module
        for name, module in list(sys.modules.items())
        if name.partition(".")[0] in libraries
        and isinstance(module, types.ModuleType)
        and not any(part.startswith("_") for part in name.split("."))
    ]
    values = [value for module in modules for value in list(vars(module).values())]
    classes = {
        id(value): value
        for value in values
        if inspect.isclass(value) and value.__module__.partition(".")[0] in libraries
    }
    return [*modules, *classes.values()]


def _public(owner: Any) -> dict[str, Any]:
    return {
        name: value
        for name, value in vars(owner).items()
        if name == "__call__" or not name.startswith("_")
    }
