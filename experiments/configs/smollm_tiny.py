"""The whole path of `experiments.oneshot` in seconds: a random model that reads bytes."""

from experiments.oneshot.config import get_config as base


def get_config(pattern: str = "unstructured"):
    config = base("wanda", pattern)
    config.model = "tiny"
    config.calibration.update(corpora=("docstrings",), sequences=4, length=64)
    config.test.update(corpora=("docstrings",), sequences=4)
    config.generation.update(tokens=4, rounds=1)
    return config
