"""Does the writer of a clothing review recommend the item? A pruned transformer.

The data is downloaded once. 82 % of the labels are ones: look at the AUC.
"""

from experiments.configs import base


def get_config():
    config = base.get_config(steps=600)
    config.batch_size = 64
    config.data.name = "reviews"
    config.data.label = "recommended"
    config.data.length = 64
    config.model.name = "transformer"
    config.model.width = 64
    config.model.mlp_width = 256
    config.learning_rate.peak = 1e-3
    config.rules = (
        (r"layers_\d+/mlp_(in|out)/kernel", "4x16", 0.8),
        (r"layers_\d+/attention/(query|key|value|out)/kernel", "2:4"),
    )
    config.recipe.name = "magnitude"
    config.recipe.begin = 5 / 12
    config.recipe.end = 3 / 4
    config.recipe.every = 1 / 60
    config.eval_every = 200
    return config
