"""`SparseLinear`: `flax.nnx.Linear` with a kernel that is packed from the start."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from flax.nnx.nn import dtypes
from jaxtyping import Array, Float

from jaxsparse.nn.structures import normal_values, random_structure
from jaxsparse.packed.base import Packed
from jaxsparse.patterns.base import Pattern
from jaxsparse.products.sparse_dot import sparse_dot


class Structure(nnx.Variable):
    """The places of a packed kernel: no parameter, nothing to differentiate."""


class SparseLinear(nnx.Module):
    """y = x @ W + b, where W has values at fixed places only.

    Parameters, gradients and the optimizer's state take memory in proportion to
    what is kept. `kernel` is a Param with the values (for blocks of shape
    (nnz, bk, bn)), `structure` a Variable with the places.

    Args:
      in_features, out_features: (K, N) of the kernel.
      pattern: `Block`, `NM` or `Unstructured`; or the packed kernel to start from.
      sparsity: fraction of the groups left out; None for `NM`.
      use_bias, dtype, param_dtype, bias_init, rngs: as in `flax.nnx.Linear`.
      kernel_init: draws a dense (in_features, out_features) kernel to take the
        values from; None draws the values alone, from a normal distribution with
        variance 1 / (inputs that an output keeps).
      promote_dtype, preferred_element_type: as in `flax.nnx.Linear`; the first is
        given the values in the place of the kernel.
      implementation: as in `sparse_dot`.

    Raises:
      ValueError: a packed kernel of another shape.

    Example:
      >>> import jax.numpy as jnp, jaxsparse as js
      >>> from flax import nnx
      >>> from jaxsparse.nn.nnx import SparseLinear
      >>> layer = SparseLinear(64, 64, js.Block(4, 16), sparsity=0.75, rngs=nnx.Rngs(0))
      >>> layer.kernel.shape, layer(jnp.ones((2, 64))).shape
      ((16, 4, 16), (2, 64))
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        pattern: Pattern | Packed,
        sparsity: float | None = None,
        *,
        use_bias: bool = True,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        kernel_init: Callable[..., Array] | None = None,
        bias_init: Callable[..., Array] = nnx.initializers.zeros,
        promote_dtype: Callable[..., Any] = dtypes.promote_dtype,
        preferred_element_type: Any = None,
        implementation: str | None = None,
        rngs: nnx.Rngs,
    ):
        shape = (in_features, out_features)
        if isinstance(pattern, Packed):
            packed = pattern
            if packed.shape != shape:
                raise ValueError(f"a packed kernel of shape {packed.shape} is not {shape}.")
        else:
            structure = random_structure(rngs.params(), shape, pattern, sparsity)
            if kernel_init is None:
                values = normal_values(rngs.params(), structure, param_dtype)
            else:
                values = structure.gather(kernel_init(rngs.params(), shape, param_dtype))
            packed = structure.with_values(values)
        self.in_features, self.out_features = shape
        self.use_bias = use_bias
        self.dtype = dtype
        self.param_dtype = param_dtype
        self.promote_dtype = promote_dtype
        self.preferred_element_type = preferred_element_type
        self.implementation = implementation
        self.structure = Structure(packed.structure)
        self.kernel = nnx.Param(packed.values)
        bias = bias_init(rngs.params(), (out_features,), param_dtype) if use_bias else None
        self.bias = None if bias is None else nnx.Param(bias)

    @property
    def packed(self) -> Packed:
        """The kernel."""
        return self.structure.get_value().with_values(self.kernel[...])

    def __call__(
        self, x: Float[Array, "*batch inputs"], out_sharding: Any = None
    ) -> Float[Array, "*batch outputs"]:
        """Applies the layer to the last axis of x; `out_sharding` as in `flax.nnx.Linear`."""
        bias = None if self.bias is None else self.bias[...]
        x, values, bias = self.promote_dtype((x, self.kernel[...], bias), dtype=self.dtype)
        y = sparse_dot(
            x,
            self.structure.get_value().with_values(values),
            implementation=self.implementation,
            preferred_element_type=self.preferred_element_type,
        )
        y = y if out_sharding is None else jax.reshard(y, out_sharding)
        return y if bias is None else y + bias
