"""Networks on point clouds: a MinkUNet for segmentation, a small classifier.

Choy et al., 2019, "4D Spatio-Temporal ConvNets: Minkowski Convolutional Neural Networks",
https://arxiv.org/abs/1904.08755. Kernel maps are values that are built once a cloud and level
and serve all layers there; up the network, the maps of the way down serve inverted.
"""

import itertools
from collections.abc import Sequence
from typing import Any

from flax import nnx

from jaxsparse.activations import KernelMap, SparseTensor, concatenate, global_pool, kernel_map
from jaxsparse.nn.clouds.nnx import SparseConv, SparseConvTranspose


class Norm(nnx.Module):
    """Batch norm over the sites that are there.

    Args:
      channels: of the tensor.
      rngs: random streams for the initial weights.
    """

    def __init__(self, channels: int, *, rngs: nnx.Rngs):
        self.norm = nnx.BatchNorm(channels, momentum=0.9, rngs=rngs)

    def __call__(self, x: SparseTensor, *, train: bool) -> SparseTensor:
        mask = x.valid[:, None]
        return x.map(lambda f: self.norm(f, use_running_average=not train, mask=mask))


class Residual(nnx.Module):
    """``relu(x + norm(conv(relu(norm(conv(x))))))``, a plain product where channels change.

    Args:
      fan_in, fan_out: channels.
      rank: spatial axes.
      rngs: random streams for the initial weights.
    """

    def __init__(self, fan_in: int, fan_out: int, rank: int, *, rngs: nnx.Rngs):
        size = (3,) * rank
        self.conv_0 = SparseConv(fan_in, fan_out, size, use_bias=False, rngs=rngs)
        self.norm_0 = Norm(fan_out, rngs=rngs)
        self.conv_1 = SparseConv(fan_out, fan_out, size, use_bias=False, rngs=rngs)
        self.norm_1 = Norm(fan_out, rngs=rngs)
        self.reshapes = fan_in != fan_out
        if self.reshapes:
            self.shortcut = nnx.Linear(fan_in, fan_out, use_bias=False, rngs=rngs)

    def __call__(self, x: SparseTensor, neighbours: KernelMap, *, train: bool) -> SparseTensor:
        y = self.norm_0(self.conv_0(x, neighbours), train=train).map(nnx.relu)
        y = self.norm_1(self.conv_1(y, neighbours), train=train)
        return ((x.map(self.shortcut) if self.reshapes else x) + y).map(nnx.relu)


class MinkUNet(nnx.Module):
    """A U-Net of sparse convolutions: outputs for each site, on the sites of the input.

    Args:
      fan_in: channels of the input.
      outputs: channels of the output.
      widths: channels of each level, the finest first; each level halves the resolution.
      rank: spatial axes.
      rngs: random streams for the initial weights.
    """

    def __init__(
        self,
        fan_in: int,
        outputs: int,
        widths: Sequence[int] = (32, 64, 128),
        rank: int = 3,
        *,
        rngs: nnx.Rngs,
    ):
        half: dict[str, Any] = dict(kernel_size=(2,) * rank, strides=2, use_bias=False, rngs=rngs)
        self.stem = Residual(fan_in, widths[0], rank, rngs=rngs)
        steps = list(itertools.pairwise(widths))
        self.downs = nnx.List([SparseConv(a, b, **half) for a, b in steps])
        self.coarse = nnx.List([Residual(b, b, rank, rngs=rngs) for _, b in steps])
        self.ups = nnx.List([SparseConvTranspose(b, a, **half) for a, b in steps])
        self.fine = nnx.List([Residual(2 * a, a, rank, rngs=rngs) for a, _ in steps])
        self.head = nnx.Linear(widths[0], outputs, rngs=rngs)

    def __call__(self, inputs: SparseTensor, *, rngs: nnx.Rngs | None = None) -> SparseTensor:
        train = rngs is not None
        neighbours = kernel_map(inputs, 3)
        x = self.stem(inputs, neighbours, train=train)
        levels = []
        for down, block in zip(self.downs, self.coarse, strict=True):
            halves = kernel_map(x, 2, stride=2, outputs="floor")
            levels.append((x, neighbours, halves))
            x = down(x, halves).map(nnx.relu)
            neighbours = kernel_map(x, 3)
            x = block(x, neighbours, train=train)
        for up, block in zip(reversed(self.ups), reversed(self.fine), strict=True):
            skipped, neighbours, halves = levels.pop()
            x = concatenate(skipped, up(x, halves.inverse).map(nnx.relu))
            x = block(x, neighbours, train=train)
        return x.map(self.head)


class CloudClassifier(nnx.Module):
    """A residual block a level, then one product on the mean of the coarsest sites.

    Args:
      fan_in: channels of the input.
      classes: outputs for each cloud of the batch.
      widths: channels of each level, the finest first; each level halves the resolution.
      rank: spatial axes.
      rngs: random streams for the initial weights.
    """

    def __init__(
        self,
        fan_in: int,
        classes: int,
        widths: Sequence[int] = (16, 32, 64),
        rank: int = 3,
        *,
        rngs: nnx.Rngs,
    ):
        steps = list(itertools.pairwise((fan_in, *widths)))
        half: dict[str, Any] = dict(kernel_size=(2,) * rank, strides=2, outputs="floor", rngs=rngs)
        self.blocks = nnx.List([Residual(a, b, rank, rngs=rngs) for a, b in steps])
        self.downs = nnx.List([SparseConv(b, b, **half) for b in widths[:-1]])
        self.head = nnx.Linear(widths[-1], classes, rngs=rngs)

    def __call__(self, inputs: SparseTensor, *, rngs: nnx.Rngs | None = None):
        x = inputs
        for level, block in enumerate(self.blocks):
            if level:
                x = self.downs[level - 1](x).map(nnx.relu)
            x = block(x, kernel_map(x, 3), train=rngs is not None)
        return self.head(global_pool(x, "avg"))
