"""MiniLM, fine-tuned on the clothing reviews: the dense model that `reviews_movement` prunes.

The weights are downloaded once, and so is the data. 82 % of the labels are ones.
"""

from experiments.configs import base

ATTENTION = r"encoder/layers/\d+/attention/\w+/kernel"
INTERMEDIATE = r"encoder/layers/\d+/intermediate/kernel"
OUTPUT = r"encoder/layers/\d+/output/kernel"


def get_config():
    config = base.get_config(steps=500)
    config.batch_size = 16
    config.data.name = "titled_reviews"
    config.data.label = "recommended"
    config.data.length = 64
    config.model.name = "bert"
    config.model.weights = "minilm"
    config.optimizer.weight_decay = 0.01
    config.optimizer.clip = 1.0
    config.learning_rate.peak = 1e-4
    config.learning_rate.warmup = 0.05
    # Heads have 32 channels. A kernel is (in, out): a neuron is a column of the first
    # product of a feed-forward part and a row of the second. Biases go with both.
    config.rules = ((ATTENTION, "32x32"), (INTERMEDIATE, "channel:1"), (OUTPUT, "channel:0"))
    config.log_every = 20
    config.eval_every = 250
    config.checkpoint_every = 100
    return config
