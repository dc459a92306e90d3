"""An MLP on the digits, pruned to 90 % in 4x16 blocks."""

from experiments.configs import base


def get_config():
    config = base.get_config(steps=2400)
    config.model.hidden = (512, 256)
    # The head is 10 wide, no multiple of 16, and 1.6 % of the weights: it stays dense.
    config.rules = ((r"layers_[01]/kernel", "4x16"),)
    config.sparsity = 0.9
    config.recipe.name = "magnitude"
    config.recipe.begin = 1 / 3
    config.recipe.end = 3 / 4
    config.recipe.every = 1 / 240
    # Gathers the weight of a block in few blocks before they are ranked.
    config.recipe.group_lasso = 1e-3
    return config
