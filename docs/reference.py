"""Writes the API reference from the docstrings.

    python docs/reference.py DIRECTORY

A page per public module, with the names that the module lists; open DIRECTORY/index.html.
"""

import inspect
import pathlib
import re
import sys
import types
import warnings
from collections.abc import Iterator

import pdoc

import jaxsparse


def public_modules(module: types.ModuleType = jaxsparse) -> Iterator[types.ModuleType]:
    """The module and, below it, every module that it lists in ``__all__``."""
    yield module
    for name in getattr(module, "__all__", ()):
        if inspect.ismodule(found := getattr(module, name)):
            yield from public_modules(found)


def public_names(module: types.ModuleType) -> list[str]:
    """What a module lists in ``__all__`` besides modules; without one, what it defines."""
    listed = getattr(module, "__all__", None)
    if listed is not None:
        return [name for name in listed if not inspect.ismodule(getattr(module, name))]
    return [
        name
        for name, thing in vars(module).items()
        if not name.startswith("_") and getattr(thing, "__module__", None) == module.__name__
    ]


def write(directory: pathlib.Path) -> None:
    """Renders every public module, and none of those that only define what another lists."""
    pdoc.render.configure(docformat="google", math=True)
    pages = []
    for module in public_modules():
        pages += [module.__name__, rf"!{re.escape(module.__name__)}\."]
    with warnings.catch_warnings():
        # Annotations of Flax and optax that only type checkers can resolve.
        warnings.filterwarnings("ignore", "Error parsing type annotation")
        pdoc.pdoc(*pages, output_directory=directory)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    write(pathlib.Path(sys.argv[1]))
    print(f"open {sys.argv[1]}/index.html")
