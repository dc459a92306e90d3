"""Iterative pruning of an MLP 64-300-100-10 on the digits to 98 %, the rate rewound.

After 1000 dense steps come 15 rounds of 400 steps; each removes 23 % of what is left
and starts over at half the first peak of the learning rate.
"""

from experiments.configs import base


def get_config():
    config = base.get_config(steps=7000)
    config.model.hidden = (300, 100)
    config.rules = ((r"layers_\d+/kernel", "unstructured"),)
    config.sparsity = 0.98
    # One threshold for all layers; the default bound of 98 % a layer would make it uniform.
    config.distribution = "global:0.999"
    config.recipe.name = "iterative"
    config.recipe.begin = 1 / 7
    config.recipe.rounds = 15
    config.learning_rate.rewind = 0.5
    return config
