"""The main job: a dense MLP on the digits, pruned to 90 % in 4x16 blocks."""

from experiments.configs import base


def get_config():
    config = base.get_config()
    config.steps = 2400
    config.model.hidden = (320, 128)
    # The head is 10 wide, no multiple of 16: it stays dense, at 1.9 % of the weights.
    config.rules = ((r"layers_[01]/kernel", "4x16"),)
    config.sparsity = 0.9
    config.recipe.name = "magnitude"
    config.recipe.begin = 800
    config.recipe.end = 1800
    config.recipe.form = "chain"
    config.recipe.group_lasso = 0.0
    return config
