"""The MLP once more in linen, with the parameter paths of the nnx one."""

from collections.abc import Sequence

import jax.numpy as jnp
from flax import linen

from experiments.data import Dataset
from experiments.models.base import MODELS, Model, from_linen
from experiments.models.mlp import squeeze_one, widths_for


class MLP(linen.Module):
    """Dense layers ``layers_0 .. layers_k`` with ReLU between them.

    Attributes:
      widths: sizes of the layers' outputs.
    """

    widths: Sequence[int]

    @linen.compact
    def __call__(self, inputs, *, train: bool):
        x = inputs.reshape(len(inputs), -1)
        for index, width in enumerate(self.widths):
            init = linen.initializers.he_normal()
            x = linen.Dense(width, kernel_init=init, name=f"layers_{index}")(x)
            x = linen.relu(x) if index < len(self.widths) - 1 else x
        return squeeze_one(x)


@MODELS.register("linen_mlp")
def linen_mlp(dataset: Dataset, hidden: Sequence[int] = (300, 100)) -> Model:
    """As ``mlp``, in linen.

    Args:
      dataset: gives the first and the last width.
      hidden: the widths between them.
    """
    fan_in, *widths = widths_for(dataset, hidden)
    return from_linen(MLP(tuple(widths)), jnp.zeros((1, fan_in)))
