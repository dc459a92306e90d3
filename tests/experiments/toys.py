"""Small data and configs that the tests of the experiments share."""

import numpy as np

from experiments import config as configs
from experiments.data import DATASETS, Dataset, Split


@DATASETS.register("toy")
def toy(path: str = "", task: str = "classification", shape: tuple[int, ...] = (16,)) -> Dataset:
    """Float examples whose label a linear model can find."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(160, *shape)).astype(np.float32)
    scores = x.reshape(160, -1) @ rng.normal(size=(np.prod(shape), 4)).astype(np.float32)
    labels = {
        "classification": scores.argmax(axis=1).astype(np.int32),
        "binary": (scores[:, 0] > 0).astype(np.float32),
        "regression": scores[:, 0],
    }[task]
    train, test = Split(x[:128], labels[:128]), Split(x[128:], labels[128:])
    return Dataset(task, train, test, 4 if task == "classification" else 1, source="toy")


def config(**overrides):
    """A run of 24 steps on ``toy``, with dotted keys written with ``__``."""
    made = configs.load("experiments/configs/base.py")
    made.steps, made.batch_size = 24, 16
    made.data.name = "toy"
    made.model.hidden = (32,)
    made.rules = ((r"layers_0/kernel", "4x16"),)
    made.sparsity = 0.75
    made.log_every, made.eval_every, made.checkpoint_every = 4, 8, 5
    for key, value in overrides.items():
        group, _, leaf = key.rpartition("__")
        (made[group] if group else made)[leaf] = value
    return configs.check(made)
