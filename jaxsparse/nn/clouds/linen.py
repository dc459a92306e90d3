"""Sparse convolutions as `flax.linen` modules."""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import jax.numpy as jnp
from flax import linen
from flax.linen.dtypes import promote_dtype
from jaxtyping import Array

from jaxsparse.activations.convolution import Dataflow
from jaxsparse.activations.maps import KernelMap
from jaxsparse.activations.tensor import SparseTensor
from jaxsparse.activations.windows import PerAxis
from jaxsparse.nn.clouds.layers import convolve


class SparseConv(linen.Module):
    """`sparse_conv` with weights of its own: `kernel` (*kernel_size, in, features) and `bias`.

    Attributes:
      features: channels of the output.
      kernel_size: one number an axis.
      strides, kernel_dilation, padding, outputs, out_shape, capacity: of the map, as in
        `jaxsparse.activations.kernel_map`.
      use_bias, dtype, param_dtype, kernel_init, bias_init: as in `flax.linen.Conv`.
      dataflow: as in `sparse_conv`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxsparse import activations as act
      >>> from jaxsparse.nn.clouds.linen import SparseConv
      >>> x = act.sparse_tensor(jnp.array([[0, 1, 1], [0, 1, 2]]), jnp.ones((2, 3)))
      >>> layer = SparseConv(8, (3, 3))
      >>> layer.apply(layer.init(jax.random.key(0), x), x)
      SparseTensor((2, 8), float32, bounds of 1 batches of [1, 2) x [1, 3))
    """

    features: int
    kernel_size: Sequence[int]
    strides: PerAxis = 1
    kernel_dilation: PerAxis = 1
    padding: PerAxis | None = None
    outputs: Any = "submanifold"
    out_shape: Sequence[int] | None = None
    capacity: int | None = None
    use_bias: bool = True
    dtype: Any = None
    param_dtype: Any = jnp.float32
    kernel_init: Callable[..., Array] = linen.initializers.lecun_normal()
    bias_init: Callable[..., Array] = linen.initializers.zeros_init()
    dataflow: Dataflow | None = None

    transposed: ClassVar[bool] = False

    @linen.compact
    def __call__(self, x: SparseTensor, kernel_map: KernelMap | None = None) -> SparseTensor:
        """Convolves.

        Args:
          x: the inputs.
          kernel_map: one that was built before, for layers that share it; None builds one.

        Raises:
          ValueError: a map of another window or of other coordinates.
        """
        shape = (*self.kernel_size, x.channels, self.features)
        kernel = self.param("kernel", self.kernel_init, shape, self.param_dtype)
        bias = None
        if self.use_bias:
            bias = self.param("bias", self.bias_init, (self.features,), self.param_dtype)
        features, kernel, bias = promote_dtype(x.features, kernel, bias, dtype=self.dtype)
        return convolve(self, x.with_features(features), kernel_map, kernel, bias)


class SparseConvTranspose(SparseConv):
    """`sparse_conv` along a transposed map, onto finer sites.

    Attributes:
      outputs: "receptive" where the layer builds its own map. Called with a map, such as the
        `inverse` of the strided layer's that it undoes, it goes where the map says.
      others: as in `SparseConv`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxsparse import activations as act
      >>> from jaxsparse.nn.clouds.linen import SparseConvTranspose
      >>> x = act.sparse_tensor(jnp.array([[0, 1, 1], [0, 1, 2]]), jnp.ones((2, 3)))
      >>> layer = SparseConvTranspose(8, (2, 2), strides=2)
      >>> layer.apply(layer.init(jax.random.key(0), x), x)
      SparseTensor((8, 8), float32, bounds of 1 batches of [2, 4) x [2, 6))
    """

    outputs: Any = "receptive"
    transposed: ClassVar[bool] = True
