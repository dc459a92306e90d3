"""ASP on a residual CNN: 2:4 after a permutation of the channels, then fine-tuning.

The digits are learned dense first. Kernels whose sizes the sparse tensor cores take are
pruned; the stem reads one channel and the head is 10 wide, so these stay dense.
"""

from experiments.configs import base


def get_config():
    config = base.get_config(steps=600)
    config.model.name = "cnn"
    config.model.widths = (32, 64)
    config.model.blocks = 2
    config.rules = ((r"blocks_\d+/(conv_[01]|shortcut)/kernel", "2:4"),)
    config.sparsity = 0.5
    config.recipe.name = "asp"
    config.recipe.begin = 2 / 3
    return config
