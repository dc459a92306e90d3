"""Recipes by name: ``create(name, setup, **options)`` gives a :class:`Recipe`."""

from experiments.recipes import single, structured
from experiments.recipes.base import RECIPES, Masks, Recipe, Setup, create

__all__ = ["RECIPES", "Masks", "Recipe", "Setup", "create", "single", "structured"]
