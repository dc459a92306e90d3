"""Which layers a scope of NNCF means, by their Flax paths.

A layer is what a leaf belongs to: that of `layers/0/attention/query/kernel` is
`layers/0/attention/query`. A scope is a layer's whole path, or `{re}` and an expression that
is searched for in it (`re.search`).
"""

import re
from collections.abc import Collection
from typing import Any

from jaxsparse.recipes.configuration import RecipeError
from jaxsparse.trees import near_misses

_EXPRESSION = "{re}"


def layer_of(path: str) -> str:
    """The layer that a leaf belongs to; the empty path for a leaf at the root.

    >>> layer_of("layers/0/attention/query/kernel")
    'layers/0/attention/query'
    """
    return path.rpartition("/")[0]


def read_scopes(value: Any, where: str) -> tuple[str, ...]:
    """A scope or a list of them, as the configuration has it.

    Raises:
      RecipeError: on what is no text, an empty list, and expressions that are none.
    """
    scopes = (value,) if isinstance(value, str) else value
    if not isinstance(scopes, list | tuple) or not scopes:
        raise RecipeError(f"{where} is {value!r}; a scope or a list of scopes would work")
    for scope in scopes:
        if not isinstance(scope, str):
            raise RecipeError(f"{where}: {scope!r} is no scope; the path of a layer would work")
        try:
            _search(scope, "")
        except re.error as error:
            raise RecipeError(f"{where}: {scope!r} is no regular expression: {error}") from error
    return tuple(scopes)


def among(scopes: Collection[str], layers: Collection[str], where: str) -> set[str]:
    """The layers that at least one scope means.

    Raises:
      RecipeError: on a scope that means none of them.
    """
    meant: set[str] = set()
    for scope in scopes:
        found = {layer for layer in layers if _search(scope, layer)}
        if not found:
            name = scope.removeprefix(_EXPRESSION)
            raise RecipeError(
                f"{where}: the scope {scope!r} matches no layer; {near_misses(name, layers)}"
            )
        meant |= found
    return meant


def _search(scope: str, layer: str) -> bool:
    if scope.startswith(_EXPRESSION):
        return re.search(scope.removeprefix(_EXPRESSION), layer) is not None
    return scope == layer
