"""SET on the digits: as RigL, but what grows is drawn at random."""

from experiments.configs import digits_rigl


def get_config():
    config = digits_rigl.get_config()
    config.recipe.name = "set"
    return config
