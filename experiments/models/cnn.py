"""A small residual convolutional network (He et al., 2016) with batch norm."""

from collections.abc import Sequence

import numpy as np
from flax import nnx

from experiments.data import Dataset
from experiments.models.base import MODELS, Model, from_nnx
from experiments.models.mlp import squeeze_one


class Block(nnx.Module):
    """``relu(x + norm(conv(relu(norm(conv(x))))))``; a 1x1 convolution where the shape changes.

    Args:
      fan_in: input channels.
      fan_out: output channels.
      stride: of the first convolution.
      rngs: random streams for the initial weights.
    """

    def __init__(self, fan_in: int, fan_out: int, stride: int, *, rngs: nnx.Rngs):
        strides = (stride, stride)
        self.conv_0 = nnx.Conv(fan_in, fan_out, (3, 3), strides, use_bias=False, rngs=rngs)
        self.norm_0 = nnx.BatchNorm(fan_out, momentum=0.9, rngs=rngs)
        self.conv_1 = nnx.Conv(fan_out, fan_out, (3, 3), use_bias=False, rngs=rngs)
        # Starting from the identity keeps early training stable.
        zeros = nnx.initializers.zeros
        self.norm_1 = nnx.BatchNorm(fan_out, momentum=0.9, scale_init=zeros, rngs=rngs)
        self.reshapes = stride != 1 or fan_in != fan_out
        if self.reshapes:
            self.shortcut = nnx.Conv(fan_in, fan_out, (1, 1), strides, use_bias=False, rngs=rngs)

    def __call__(self, x, *, train: bool):
        y = nnx.relu(self.norm_0(self.conv_0(x), use_running_average=not train))
        y = self.norm_1(self.conv_1(y), use_running_average=not train)
        return nnx.relu(y + (self.shortcut(x) if self.reshapes else x))


class CNN(nnx.Module):
    """A stem, one stage of ``Block``s per width (each halves the image), a linear head.

    Args:
      channels: input channels.
      widths: channels of the stages.
      blocks: blocks per stage.
      outputs: size of the head.
      rngs: random streams for the initial weights.
    """

    def __init__(
        self, channels: int, widths: Sequence[int], blocks: int, outputs: int, *, rngs: nnx.Rngs
    ):
        self.stem = nnx.Conv(channels, widths[0], (3, 3), use_bias=False, rngs=rngs)
        self.norm = nnx.BatchNorm(widths[0], momentum=0.9, rngs=rngs)
        self.depth = len(widths) * blocks
        fan_in = widths[0]
        for index in range(self.depth):
            stage, first = index // blocks, index % blocks == 0
            stride = 2 if stage and first else 1
            setattr(self, f"blocks_{index}", Block(fan_in, widths[stage], stride, rngs=rngs))
            fan_in = widths[stage]
        self.head = nnx.Linear(fan_in, outputs, rngs=rngs)

    def __call__(self, inputs, *, rngs: nnx.Rngs | None = None):
        train = rngs is not None
        x = nnx.relu(self.norm(self.stem(inputs), use_running_average=not train))
        for index in range(self.depth):
            x = getattr(self, f"blocks_{index}")(x, train=train)
        return squeeze_one(self.head(x.mean(axis=(1, 2))))


@MODELS.register("cnn")
def cnn(dataset: Dataset, widths: Sequence[int] = (32, 64), blocks: int = 2) -> Model:
    """A residual network on images (n, height, width, channels).

    Args:
      dataset: gives the channels and the outputs.
      widths: channels of the stages.
      blocks: residual blocks per stage.

    Raises:
      ValueError: inputs that are not images.
    """
    inputs = dataset.train.inputs
    if not isinstance(inputs, np.ndarray) or inputs.ndim != 4:
        shape = getattr(inputs, "shape", type(inputs).__name__)
        raise ValueError(f"a CNN reads images (n, height, width, channels), found {shape}")
    channels = inputs.shape[-1]
    return from_nnx(lambda rngs: CNN(channels, widths, blocks, dataset.outputs, rngs=rngs))
