"""Sparse convolutions as `flax.nnx` modules."""

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
from flax import nnx
from flax.nnx.nn import dtypes
from jaxtyping import Array

from jaxsparse.activations.convolution import Dataflow
from jaxsparse.activations.maps import KernelMap, Outputs
from jaxsparse.activations.tensor import SparseTensor
from jaxsparse.activations.windows import PerAxis
from jaxsparse.nn.clouds.layers import convolve


class SparseConv(nnx.Module):
    """`sparse_conv` with weights of its own: `kernel` (*kernel_size, in, out) and `bias`.

    Args:
      in_features, out_features: channels.
      kernel_size: one number an axis.
      strides, kernel_dilation, padding, outputs, out_shape, capacity: of the map, as in
        `jaxsparse.activations.kernel_map`.
      use_bias, dtype, param_dtype, kernel_init, bias_init, rngs: as in `flax.nnx.Conv`.
      dataflow: as in `sparse_conv`.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> from jaxsparse import activations as act
      >>> from jaxsparse.nn.clouds.nnx import SparseConv
      >>> x = act.sparse_tensor(jnp.array([[0, 1, 1], [0, 1, 2]]), jnp.ones((2, 3)))
      >>> SparseConv(3, 8, (3, 3), rngs=nnx.Rngs(0))(x)
      SparseTensor((2, 8), float32, bounds of 1 batches of [1, 2) x [1, 3))
    """

    transposed = False

    def __init__(
        self,
        in_features: int,
        out_features: int,
        kernel_size: Sequence[int],
        *,
        strides: PerAxis = 1,
        kernel_dilation: PerAxis = 1,
        padding: PerAxis | None = None,
        outputs: Outputs = "submanifold",
        out_shape: Sequence[int] | None = None,
        capacity: int | None = None,
        use_bias: bool = True,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        kernel_init: Callable[..., Array] = nnx.initializers.lecun_normal(),  # noqa: B008
        bias_init: Callable[..., Array] = nnx.initializers.zeros,
        dataflow: Dataflow | None = None,
        rngs: nnx.Rngs,
    ):
        shape = (*kernel_size, in_features, out_features)
        self.kernel = nnx.Param(kernel_init(rngs.params(), shape, param_dtype))
        bias = bias_init(rngs.params(), (out_features,), param_dtype) if use_bias else None
        self.bias = None if bias is None else nnx.Param(bias)
        self.kernel_size = tuple(kernel_size)
        self.strides = _static(strides)
        self.kernel_dilation = _static(kernel_dilation)
        self.padding = _static(padding)
        self.outputs = outputs
        self.out_shape = _static(out_shape)
        self.capacity = capacity
        self.dtype = dtype
        self.dataflow: Dataflow | None = dataflow

    def __call__(self, x: SparseTensor, kernel_map: KernelMap | None = None) -> SparseTensor:
        """Convolves.

        Args:
          x: the inputs.
          kernel_map: one that was built before, for layers that share it; None builds one.

        Raises:
          ValueError: a map of another window or of other coordinates.
        """
        bias = None if self.bias is None else self.bias[...]
        features, kernel, bias = dtypes.promote_dtype(
            (x.features, self.kernel[...], bias), dtype=self.dtype
        )
        return convolve(self, x.with_features(features), kernel_map, kernel, bias)


class SparseConvTranspose(SparseConv):
    """`sparse_conv` along a transposed map, onto finer sites.

    Args:
      outputs: "receptive" where the layer builds its own map. Called with a map, such as the
        `inverse` of the strided layer's that it undoes, it goes where the map says.
      others: as in `SparseConv`.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> from jaxsparse import activations as act
      >>> from jaxsparse.nn.clouds.nnx import SparseConv, SparseConvTranspose
      >>> x = act.sparse_tensor(jnp.array([[0, 1, 1], [0, 1, 2]]), jnp.ones((2, 3)))
      >>> down = act.kernel_map(x, 2, stride=2, outputs="floor")
      >>> coarse = SparseConv(3, 8, (2, 2), strides=2, rngs=nnx.Rngs(0))(x, down)
      >>> up = SparseConvTranspose(8, 3, (2, 2), strides=2, rngs=nnx.Rngs(1))
      >>> up(coarse, down.inverse)
      SparseTensor((2, 3), float32, bounds of 1 batches of [1, 2) x [1, 3))
    """

    transposed = True

    def __init__(self, *args, outputs: Any = "receptive", **kwargs):
        super().__init__(*args, outputs=outputs, **kwargs)


def _static(value: Any) -> Any:
    """A hashable option: nnx would take a list for a tree of modules."""
    return tuple(value) if isinstance(value, Sequence) else value
