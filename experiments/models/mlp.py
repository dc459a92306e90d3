"""A plain multilayer perceptron."""

import itertools
from collections.abc import Sequence

import numpy as np
from flax import nnx

from experiments.data import Dataset
from experiments.models.base import MODELS, Model, from_nnx


class MLP(nnx.Module):
    """Dense layers ``layers_0 .. layers_k`` with ReLU between them.

    Args:
      widths: sizes from the input to the output, both included.
      rngs: random streams for the initial weights.
    """

    def __init__(self, widths: Sequence[int], *, rngs: nnx.Rngs):
        self.depth = len(widths) - 1
        for index, (fan_in, fan_out) in enumerate(itertools.pairwise(widths)):
            init = nnx.initializers.he_normal()
            layer = nnx.Linear(fan_in, fan_out, kernel_init=init, rngs=rngs)
            setattr(self, f"layers_{index}", layer)

    def __call__(self, inputs, *, rngs: nnx.Rngs | None = None):
        x = inputs.reshape(len(inputs), -1)
        for index in range(self.depth):
            x = getattr(self, f"layers_{index}")(x)
            x = nnx.relu(x) if index < self.depth - 1 else x
        return squeeze_one(x)


def squeeze_one(x):
    """(n, 1) -> (n,): a single output is a number, not a class."""
    return x[:, 0] if x.shape[1] == 1 else x


def widths_for(dataset: Dataset, hidden: Sequence[int]) -> tuple[int, ...]:
    """Layer sizes from the flattened input to the outputs of a data set.

    Raises:
      ValueError: inputs that are not one float array.
    """
    inputs = dataset.train.inputs
    if not isinstance(inputs, np.ndarray) or not np.issubdtype(inputs.dtype, np.floating):
        raise ValueError("an MLP reads one float array per example; this data set has token ids")
    return (int(np.prod(inputs.shape[1:])), *hidden, dataset.outputs)


@MODELS.register("mlp")
def mlp(dataset: Dataset, hidden: Sequence[int] = (300, 100)) -> Model:
    """An MLP on the flattened inputs; 64-300-100-10 on the digits.

    Args:
      dataset: gives the first and the last width.
      hidden: the widths between them.
    """
    widths = widths_for(dataset, hidden)
    return from_nnx(lambda rngs: MLP(widths, rngs=rngs))
