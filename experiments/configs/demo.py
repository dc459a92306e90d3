"""The main job: ``digits_block`` with the transforms as a plain optax chain."""

from experiments.configs import digits_block


def get_config():
    config = digits_block.get_config()
    config.recipe.form = "chain"
    return config
