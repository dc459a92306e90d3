"""Unstructured gradual magnitude pruning of an MLP on the digits, to 95 %."""

from experiments.configs import base


def get_config():
    config = base.get_config(steps=2400)
    config.model.hidden = (300, 100)
    config.rules = ((r"layers_\d+/kernel", "unstructured"),)
    config.sparsity = 0.95
    config.distribution = "erk"
    config.recipe.name = "magnitude"
    config.recipe.begin = 1 / 3
    config.recipe.end = 3 / 4
    config.recipe.every = 1 / 240
    return config
