"""What the layers of both Flaxes do with their weights."""

from typing import Any

from jaxtyping import Array, Float

from jaxsparse.activations.convolution import sparse_conv
from jaxsparse.activations.maps import KernelMap, kernel_map, transposed_map
from jaxsparse.activations.tensor import SparseTensor
from jaxsparse.activations.windows import Window


def convolve(
    layer: Any,
    x: SparseTensor,
    given: KernelMap | None,
    kernel: Float[Array, "*size inputs outputs"],
    bias: Float[Array, "outputs"] | None,
) -> SparseTensor:
    """`sparse_conv` along the map given, if it is of this layer's window, else a new one.

    Args:
      layer: has the options of a map as attributes, and `transposed`, whether of
        `transposed_map`.
      x: what is convolved.
      given: a map, or None.
      kernel, bias: the layer's weights.

    Raises:
      ValueError: a map of another window or of other coordinates.
    """
    geometry = dict(
        size=layer.kernel_size,
        stride=layer.strides,
        dilation=layer.kernel_dilation,
        padding=layer.padding,
    )
    if given is None:
        given = (transposed_map if layer.transposed else kernel_map)(
            x,
            **geometry,
            outputs=layer.outputs,
            out_shape=layer.out_shape,
            capacity=layer.capacity,
        )
    elif given.window != (window := Window.of(x.bounds.rank, **geometry)):
        raise ValueError(f"the kernel map given is of {given.window}, this layer of {window}.")
    return sparse_conv(x, kernel, given, bias, dataflow=layer.dataflow)
