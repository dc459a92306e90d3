"""MobileNetV1 on 10,000 images of MNIST, half of the FLOPs as an agent learns to choose."""

from experiments.search.config import variant


def get_config(which: str = ""):
    return variant("amc", which)
