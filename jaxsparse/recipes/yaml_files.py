"""Recipes in YAML as plain dictionaries."""

import os
import pathlib
from typing import Any

from jaxsparse.recipes.configuration import RecipeError

_SUFFIXES = (".yaml", ".yml", ".json")


def read_yaml(recipe: Any) -> dict[Any, Any]:
    """A recipe as nested dictionaries and lists.

    Args:
      recipe: a mapping, the path of a file, or its text; JSON is YAML, too.

    Raises:
      RecipeError: no file there, no YAML, a key that stands twice, and what is no mapping.
      ImportError: where PyYAML is not installed, and the recipe is no mapping.
    """
    if isinstance(recipe, dict):
        return recipe
    if not isinstance(recipe, str | os.PathLike):
        raise RecipeError(
            f"the recipe is {recipe!r}; the text of a YAML file, its path or a dictionary would "
            "work"
        )
    text = _text(recipe)
    found = _parsed(text)
    if not isinstance(found, dict):
        raise RecipeError(
            f"the recipe is {type(found).__name__}, not a mapping: {text[:80]!r}; the text of a "
            "recipe, or the path of a file that is there, would work"
        )
    return found


def _text(recipe: str | os.PathLike[str]) -> str:
    is_path = isinstance(recipe, os.PathLike) or (
        "\n" not in recipe and (recipe.endswith(_SUFFIXES) or os.path.isfile(recipe))
    )
    if not is_path:
        return str(recipe)
    try:
        return pathlib.Path(recipe).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"the recipe {str(recipe)!r} cannot be read: {error}") from error


def _parsed(text: str) -> Any:
    try:
        import yaml
    except ImportError as error:
        raise ImportError(
            "recipes in YAML are read by PyYAML: pip install 'jaxsparse[recipes]'; a dictionary "
            "needs none"
        ) from error

    class Loader(yaml.SafeLoader):
        """Plain data alone, and no key twice."""

    def mapping(loader, node):
        own = [key for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        keys = [loader.construct_object(key, deep=True) for key in own]
        for key in keys:
            if keys.count(key) > 1:
                line = node.start_mark.line + 1
                raise RecipeError(f"the key {key!r} stands twice in the mapping at line {line}")
        return loader.construct_mapping(node, deep=True)

    Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, mapping)
    try:
        return yaml.load(text, Loader)
    except (yaml.YAMLError, TypeError, RecursionError) as error:
        raise RecipeError(f"the recipe is no YAML of plain data: {error}") from error
