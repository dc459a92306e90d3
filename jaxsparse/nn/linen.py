"""`SparseDense`: `flax.linen.Dense` with a kernel that is packed from the start."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from flax import linen
from flax.linen.dtypes import promote_dtype
from jaxtyping import Array, Float

from jaxsparse.nn.structures import normal_values, random_structure
from jaxsparse.patterns.base import Pattern
from jaxsparse.products.sparse_dot import sparse_dot


class SparseDense(linen.Module):
    """y = x @ W + b, where W has values at fixed random places only.

    Parameters, gradients and the optimizer's state take memory in proportion to
    what is kept. The parameter `kernel` holds the values (for blocks of shape
    (nnz, bk, bn)); the places are a variable of the collection "structure".

    Attributes:
      features: size of the output.
      pattern: `Block`, `NM` or `Unstructured`.
      sparsity: fraction of the groups left out; None for `NM`.
      use_bias, dtype, param_dtype, bias_init: as in `flax.linen.Dense`.
      kernel_init: draws a dense (inputs, features) kernel to take the values
        from; None draws the values alone, from a normal distribution with
        variance 1 / (inputs that an output keeps).
      implementation: as in `sparse_dot`.

    Example:
      >>> import jax, jax.numpy as jnp, jaxsparse as js
      >>> from jaxsparse.nn.linen import SparseDense
      >>> layer = SparseDense(64, js.Block(4, 16), sparsity=0.75)
      >>> variables = layer.init(jax.random.key(0), jnp.ones((1, 64)))
      >>> variables["params"]["kernel"].shape
      (16, 4, 16)
    """

    features: int
    pattern: Pattern
    sparsity: float | None = None
    use_bias: bool = True
    dtype: Any = None
    param_dtype: Any = jnp.float32
    kernel_init: Callable[..., Array] | None = None
    bias_init: Callable[..., Array] = linen.initializers.zeros_init()
    implementation: str | None = None

    @linen.compact
    def __call__(self, x: Float[Array, "*batch inputs"]) -> Float[Array, "*batch features"]:
        """Applies the layer to the last axis of x."""
        shape = (x.shape[-1], self.features)
        structure = self.variable(
            "structure",
            "kernel",
            lambda: random_structure(self.make_rng("params"), shape, self.pattern, self.sparsity),
        ).value

        def values(key):
            if self.kernel_init is None:
                return normal_values(key, structure, self.param_dtype)
            return structure.gather(self.kernel_init(key, shape, self.param_dtype))

        kernel = self.param("kernel", values)
        bias = None
        if self.use_bias:
            bias = self.param("bias", self.bias_init, (self.features,), self.param_dtype)
        x, kernel, bias = promote_dtype(x, kernel, bias, dtype=self.dtype)
        y = sparse_dot(x, structure.with_values(kernel), implementation=self.implementation)
        return y if bias is None else y + bias
