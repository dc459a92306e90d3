"""DLRM on MovieLens-100k: the two large layers of the top MLP at 85 % in 4x16 blocks.

The data is downloaded once, for research only (GroupLens' licence). The pattern and
the sparsity are those published for DLRM by Intel's compressor.
"""

from experiments.configs import base


def get_config():
    config = base.get_config(steps=1500)
    config.batch_size = 512
    config.data.name = "movielens"
    config.data.label = "liked"
    config.model.name = "dlrm"
    config.model.width = 32
    config.model.bottom = (64,)
    config.model.top = (256, 128)
    config.model.dropout = 0.2
    config.learning_rate.peak = 1e-3
    config.optimizer.weight_decay = 0.1
    config.rules = ((r"top/layers_[01]/kernel", "4x16", 0.85),)
    config.recipe.name = "magnitude"
    config.recipe.begin = 1 / 3
    config.recipe.end = 2 / 3
    config.recipe.every = 1 / 150
    return config
