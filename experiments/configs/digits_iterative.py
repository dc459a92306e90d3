"""Iterative pruning of an MLP 64-300-100-10 on the digits to 98 %, the rate rewound."""

from experiments.configs import base


def get_config():
    config = base.get_config()
    config.steps = 4000
    config.model.hidden = (300, 100)
    config.rules = ((r"layers_\d+/kernel", "unstructured"),)
    config.sparsity = 0.98
    config.recipe.name = "iterative"
    config.recipe.begin = 1000
    config.recipe.rounds = 15
    config.learning_rate.rewind = 0.1
    return config
