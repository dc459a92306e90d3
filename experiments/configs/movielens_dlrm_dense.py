"""What ``movielens_dlrm`` is compared with: the same steps and rates without pruning."""

from ml_collections import ConfigDict

from experiments.configs import movielens_dlrm


def get_config():
    config = movielens_dlrm.get_config()
    config.recipe = ConfigDict({"name": "dense", "begin": config.recipe.begin})
    return config
