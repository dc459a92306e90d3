"""The unstructured config once more with a linen model; only the model differs."""

from experiments.configs import digits_magnitude


def get_config():
    config = digits_magnitude.get_config()
    config.model.name = "linen_mlp"
    return config
