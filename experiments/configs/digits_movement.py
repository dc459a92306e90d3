"""Movement pruning of an MLP on the digits, to 90 %."""

from experiments.configs import base


def get_config():
    config = base.get_config(steps=2400)
    config.model.hidden = (300, 100)
    config.rules = ((r"layers_[01]/kernel", "unstructured"),)
    config.sparsity = 0.9
    config.recipe.name = "movement"
    config.recipe.begin = 1 / 3
    config.recipe.end = 3 / 4
    config.recipe.score_rate = 1e-2
    return config
