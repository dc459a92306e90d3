"""NNCF's JSON as plain dictionaries, and its parameters checked one by one.

NNCF reads JSON with comments and trailing commas, so such files are read here, too.
"""

import json
import math
import numbers
import operator
import os
import pathlib
import re
from collections.abc import Collection, Mapping
from typing import Any, TypeVar

from jaxsparse.trees import near_misses

ALGORITHM = "movement_sparsity"

Default = TypeVar("Default")


class RecipeError(ValueError):
    """A configuration that does not fit itself, or the parameters that it is for.

    The one error of every recipe. It is raised before anything is computed, names the entry of
    the configuration, the leaf and its shape where one is meant, and says what would work.
    """


def algorithm_of(config: Any) -> dict[str, Any]:
    """The section of the algorithm, as nested dictionaries and lists.

    Args:
      config: path of a JSON file, or a mapping of NNCF's layout, an `ml_collections` one, too:
        the whole file, its "compression", or the section itself.

    Raises:
      RecipeError: if the file is none that NNCF reads, or asks for other algorithms.
    """
    if isinstance(config, str | os.PathLike):
        config = _file(pathlib.Path(config))
    section = _plain(config)
    if isinstance(section, dict):
        section = section.get("compression", section)
    listed = section if isinstance(section, list) else [section]
    for part in listed:
        if not isinstance(part, dict):
            raise RecipeError(
                f'the configuration is {part!r}; a mapping with "algorithm": "{ALGORITHM}" would '
                "work, so would the path of a JSON file"
            )
        if part.get("algorithm") != ALGORITHM:
            raise RecipeError(
                f"algorithm is {part.get('algorithm')!r}; {ALGORITHM!r} alone is read, so a "
                f"configuration without the others would work"
            )
    if len(listed) != 1:
        raise RecipeError(
            f"{ALGORITHM!r} stands {len(listed)} times in the configuration, not once"
        )
    return listed[0]


def check_keys(section: Mapping[str, Any], known: Collection[str], where: str) -> None:
    """Raises RecipeError on a key that is not known."""
    for key in section:
        if key not in known:
            raise RecipeError(f"{where}: unknown key {key!r}; {near_misses(str(key), known)}")


def number(
    section: Mapping[str, Any], key: str, where: str, default: Default = None
) -> float | Default:
    """A finite number of the section, or the default where it has none, or None.

    Raises:
      RecipeError: if it is something else.
    """
    value = section.get(key)
    if value is None:
        return default
    whole = integer(value)
    try:
        real = not isinstance(value, bool) and isinstance(value, numbers.Real)
        finite = real and math.isfinite(value)
    except OverflowError:  # an integer beyond all floats
        finite = False
    if not finite:
        raise RecipeError(f"{where}.{key} is {value!r}; a finite number would work")
    return float(value) if whole is None else whole


def integer(value: Any) -> int | None:
    """The integer that a value is, NumPy's included; None for others and for truth values."""
    is_one = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    return operator.index(value) if is_one else None


def required(section: Mapping[str, Any], key: str, where: str) -> float:
    """A finite number that must be there."""
    value = number(section, key, where)
    if value is None:
        raise RecipeError(f"{where}.{key} is missing; a number would work")
    return value


def _plain(value: Any) -> Any:
    """Mappings of any kind as dictionaries, sequences as lists."""
    if hasattr(value, "keys"):  # an ml_collections one is no Mapping
        return {key: _plain(value[key]) for key in value}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _file(path: pathlib.Path) -> Any:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"the configuration {str(path)!r} cannot be read: {error}") from error
    try:
        return json.loads(_without(_TRAILING_COMMA, _without(_COMMENT, text)))
    except json.JSONDecodeError as error:
        raise RecipeError(f"the configuration {str(path)!r} is no JSON: {error}") from error


# Strings come first, so that nothing in one is taken for a comment or a comma.
_STRING = r'("(?:\\.|[^"\\])*")'
_COMMENT = re.compile(rf"{_STRING}|//[^\n]*|/\*.*?\*/", re.DOTALL)
_TRAILING_COMMA = re.compile(rf"{_STRING}|,(?=\s*[\]}}])")


def _without(expression: re.Pattern[str], text: str) -> str:
    """The text without what the expression matches, strings aside; lines keep their numbers."""
    return expression.sub(lambda found: found[1] or "\n" * found[0].count("\n"), text)
