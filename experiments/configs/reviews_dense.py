"""MiniLM, fine-tuned on the clothing reviews: the dense model that `reviews_movement` prunes.

The weights are downloaded once, and so is the data. 82 % of the labels are ones.
"""

from experiments.configs import base

ATTENTION = r"encoder/layers/\d+/attention"
FEED_FORWARD = r"encoder/layers/\d+"


def get_config():
    config = base.get_config(steps=600)
    config.batch_size = 32
    config.data.name = "titled_reviews"
    config.data.label = "recommended"
    config.data.length = 64
    config.model.name = "bert"
    config.model.weights = "minilm"
    config.learning_rate.peak = 1e-4
    config.learning_rate.warmup = 0.1
    # Heads have 32 channels. A kernel is (in, out): a neuron is a column of the first
    # product of a feed-forward part and a row of the second.
    config.rules = (
        (rf"{ATTENTION}/(query|key|value|output)/kernel", "32x32"),
        (rf"{ATTENTION}/(query|key|value)/bias", "1x32"),
        (rf"{FEED_FORWARD}/intermediate/kernel", "channel:1"),
        (rf"{FEED_FORWARD}/intermediate/bias", "channel:0"),
        (rf"{FEED_FORWARD}/output/kernel", "channel:0"),
    )
    config.log_every = 20
    config.eval_every = 300
    config.checkpoint_every = 100
    return config
