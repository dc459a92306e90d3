"""The kernel map that a layer was given, or the one it builds."""

from jaxsparse.activations.maps import KernelMap, kernel_map, transposed_map
from jaxsparse.activations.tensor import SparseTensor
from jaxsparse.activations.windows import Window


def map_of(x: SparseTensor, given: KernelMap | None, transposed: bool, **options) -> KernelMap:
    """The map given, if it is of this layer's window, else a new one.

    Args:
      x: what is convolved.
      given: a map, or None.
      transposed: whether `options` are of `transposed_map`.
      options: size, stride, dilation, padding; outputs, out_shape and capacity.

    Raises:
      ValueError: a map of another window.
    """
    if given is None:
        return (transposed_map if transposed else kernel_map)(x, **options)
    names = ("size", "stride", "dilation", "padding")
    window = Window.of(x.bounds.rank, **{name: options[name] for name in names})
    if given.window != window:
        raise ValueError(f"the kernel map given is of {given.window}, this layer of {window}.")
    return given
