"""A residual CNN on the digits, its convolutions pruned to 80 % in 4x16 blocks.

A kernel (3, 3, in, out) is seen as (9 * in, out). The stem reads one channel and
the head is 10 wide: they stay dense.
"""

from experiments.configs import base


def get_config():
    config = base.get_config(steps=600)
    config.model.name = "cnn"
    config.model.widths = (32, 64)
    config.model.blocks = 1
    config.rules = ((r"blocks_\d+/conv_[01]/kernel", "4x16"),)
    config.sparsity = 0.8
    config.recipe.name = "magnitude"
    config.recipe.begin = 5 / 12
    config.recipe.end = 3 / 4
    config.recipe.every = 1 / 60
    return config
