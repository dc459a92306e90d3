"""RigL on the digits: 95 % sparse from the first step to the last."""

from experiments.configs import base


def get_config():
    config = base.get_config(steps=2400)
    config.model.hidden = (300, 100)
    config.rules = ((r"layers_\d+/kernel", "unstructured"),)
    config.sparsity = 0.95
    config.distribution = "erk"
    config.recipe.name = "rigl"
    config.recipe.end = 3 / 4
    config.recipe.every = 1 / 120
    config.recipe.fraction = 0.3
    return config
