"""MobileNetV1 on 10,000 images of MNIST, narrowed to half of the FLOPs: one group after another."""

from experiments.search.config import variant


def get_config(which: str = ""):
    return variant("netadapt", which)
