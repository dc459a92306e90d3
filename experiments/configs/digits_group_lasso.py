"""Proximal group lasso on 4x16 blocks of an MLP on the digits.

What reaches zero becomes the mask; ``recipe.alpha`` decides how much does.
"""

from experiments.configs import base


def get_config():
    config = base.get_config(steps=2400)
    config.model.hidden = (512, 256)
    config.rules = ((r"layers_[01]/kernel", "4x16"),)
    config.recipe.name = "group_lasso"
    config.recipe.begin = 1 / 3
    config.recipe.end = 2 / 3
    config.recipe.alpha = 0.45
    return config
