"""2:4 sparsity of an MLP on the digits, trained with straight-through gradients."""

from experiments.configs import base


def get_config():
    config = base.get_config(steps=1600)
    config.model.hidden = (300, 100)
    config.rules = ((r"layers_\d+/kernel", "2:4"),)
    config.sparsity = 0.5
    config.recipe.name = "nm"
    config.recipe.begin = 1 / 2
    config.recipe.end = 7 / 8
    config.recipe.every = 1 / 160
    return config
