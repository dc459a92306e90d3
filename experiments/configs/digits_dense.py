"""What ``digits_block`` is compared with: the same steps and rates without pruning."""

from ml_collections import ConfigDict

from experiments.configs import digits_block


def get_config():
    config = digits_block.get_config()
    config.recipe = ConfigDict({"name": "dense", "begin": config.recipe.begin})
    return config
