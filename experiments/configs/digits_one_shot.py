"""What ``digits_iterative`` is compared with: 98 % at once, then the same fine-tuning."""

from experiments.configs import digits_iterative


def get_config():
    config = digits_iterative.get_config()
    config.recipe.name = "one_shot"
    del config.recipe.rounds
    return config
