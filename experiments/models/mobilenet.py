"""MobileNetV1 (Howard et al., 2017, arXiv 1704.04861): depthwise and pointwise in turn."""

from collections.abc import Sequence

import numpy as np
from flax import nnx

from experiments.data import Dataset
from experiments.models.base import MODELS, Model, from_nnx
from experiments.models.mlp import squeeze_one

STEM = 32
# (channels, stride of the depthwise convolution) of every block.
BLOCKS = (
    *((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2)),
    *5 * ((512, 1),),
    *((1024, 2), (1024, 1)),
)


class Separable(nnx.Module):
    """``relu(norm(pointwise(relu(norm(depthwise(x))))))``.

    Args:
      fan_in: input channels.
      fan_out: output channels.
      stride: of the depthwise convolution.
      rngs: random streams for the initial weights.
    """

    def __init__(self, fan_in: int, fan_out: int, stride: int, *, rngs: nnx.Rngs):
        self.depthwise = nnx.Conv(
            *(fan_in, fan_in, (3, 3), (stride, stride)),
            feature_group_count=fan_in,
            use_bias=False,
            rngs=rngs,
        )
        self.norm_0 = nnx.BatchNorm(fan_in, momentum=0.9, rngs=rngs)
        self.pointwise = nnx.Conv(fan_in, fan_out, (1, 1), use_bias=False, rngs=rngs)
        self.norm_1 = nnx.BatchNorm(fan_out, momentum=0.9, rngs=rngs)

    def __call__(self, x, *, train: bool):
        x = nnx.relu(self.norm_0(self.depthwise(x), use_running_average=not train))
        return nnx.relu(self.norm_1(self.pointwise(x), use_running_average=not train))


class MobileNet(nnx.Module):
    """A stem, ``Separable`` blocks, the mean over places and a linear head.

    Args:
      channels: of the images.
      width: factor on all channels but those of images and outputs.
      stem_stride: 2 in the paper, whose images have 224 pixels a side; 1 for small ones.
      blocks: (channels, stride) of each.
      outputs: size of the head.
      rngs: random streams for the initial weights.
    """

    def __init__(
        self,
        channels: int,
        width: float,
        stem_stride: int,
        blocks: Sequence[tuple[int, int]],
        outputs: int,
        *,
        rngs: nnx.Rngs,
    ):
        fan_in = scaled(STEM, width)
        strides = (stem_stride, stem_stride)
        self.stem = nnx.Conv(channels, fan_in, (3, 3), strides, use_bias=False, rngs=rngs)
        self.norm = nnx.BatchNorm(fan_in, momentum=0.9, rngs=rngs)
        self.depth = len(blocks)
        for index, (fan_out, stride) in enumerate(blocks):
            fan_out = scaled(fan_out, width)
            setattr(self, f"blocks_{index}", Separable(fan_in, fan_out, stride, rngs=rngs))
            fan_in = fan_out
        self.head = nnx.Linear(fan_in, outputs, rngs=rngs)

    def __call__(self, inputs, *, rngs: nnx.Rngs | None = None):
        train = rngs is not None
        x = nnx.relu(self.norm(self.stem(inputs), use_running_average=not train))
        for index in range(self.depth):
            x = getattr(self, f"blocks_{index}")(x, train=train)
        return squeeze_one(self.head(x.mean(axis=(1, 2))))


def scaled(channels: int, width: float) -> int:
    """The channels of a layer at a width; at least one.

    >>> scaled(64, 0.75)
    48
    """
    return max(1, round(width * channels))


@MODELS.register("mobilenet")
def mobilenet(
    dataset: Dataset, width: float = 1.0, stem_stride: int = 2, blocks: int = len(BLOCKS)
) -> Model:
    """MobileNetV1 on images (n, height, width, channels).

    Args:
      dataset: gives the channels and the outputs.
      width: factor on the channels of all layers.
      stem_stride: of the first convolution.
      blocks: the first so many of the thirteen; fewer make a quick model for tests.

    Raises:
      ValueError: inputs that are not images, a width that is not above 0, too many blocks.
    """
    inputs = dataset.train.inputs
    if not isinstance(inputs, np.ndarray) or inputs.ndim != 4:
        shape = getattr(inputs, "shape", type(inputs).__name__)
        raise ValueError(f"MobileNet reads images (n, height, width, channels), found {shape}")
    if not width > 0:
        raise ValueError(f"model.width = {width}: a factor above 0, such as 0.75, would work")
    if blocks > len(BLOCKS):
        raise ValueError(f"model.blocks = {blocks}: MobileNetV1 has {len(BLOCKS)}, or fewer")
    sizes = inputs.shape[-1], width, stem_stride, BLOCKS[:blocks], dataset.outputs
    return from_nnx(lambda rngs: MobileNet(*sizes, rngs=rngs))
