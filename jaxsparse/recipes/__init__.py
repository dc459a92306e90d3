"""Recipes: whole ways to get sparse, read from the configurations of other systems."""

from jaxsparse.recipes import distillation, movement, oneshot, retrain_free
from jaxsparse.recipes.configuration import RecipeError

__all__ = ["RecipeError", "distillation", "movement", "oneshot", "retrain_free"]
