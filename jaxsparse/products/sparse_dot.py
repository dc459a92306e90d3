"""`sparse_dot`: multiply by a packed weight, on whatever the machine has."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jax.core import Tracer
from jax.sharding import PartitionSpec, reshard
from jaxtyping import Array, DTypeLike, Float

import jaxsparse.kernels as kernels
from jaxsparse.packed.base import Packed
from jaxsparse.products.primitives import product_p, sampled_p, scaled_product_p


def sparse_dot(
    x: Float[Array, "*batch_and_inputs"],
    packed: Packed,
    *,
    implementation: str | None = None,
    preferred_element_type: DTypeLike | None = None,
) -> Float[Array, "*batch_and_outputs"]:
    """Multiplies by a packed weight.

        y[..., o] = Σ_i x[..., i] W[i, o]

    over the entries of W that are stored. Products are summed in float32 at
    least. What is not stored is not multiplied: an infinity in x reaches only
    the outputs that a stored weight connects it with, or becomes NaN where the
    implementation spreads the weight out. A zero in x multiplies nothing where the weight is
    a `CSR`, x has eight rows at most and the kernels are native: it makes no NaN of a weight
    that is infinite.

    Indices are checked when a weight is made of arrays. Of those that came otherwise, by
    `replace` or under `jax.jit`, the native kernels refuse in every product alike what is
    out of range, out of order or named twice; "xla" cannot raise and trusts them: what lies
    outside is left out or counted elsewhere, of two values in one place one counts. Positions
    of n:m always lie in their group where m is a power of two; of those that are named
    twice the native kernels add the values up.

    Args:
      x: of shape (..., *inputs), floating point. For a (K, N) kernel the inputs
        are one axis of K; for the kernel (heads, width, N) of an attention
        output with in_axis=(0, 1) they are (heads, width).
      packed: a `BlockSparse`, `NMSparse`, `Bitmap`, `CSC` or `CSR`, without stacked axes (map
        over those with `jax.vmap` or `jax.lax.scan`). Differentiate with
        respect to `packed.values`.
      implementation: the name of one in `js.implementations()`, or None for the
        best that supports the call.
      preferred_element_type: floating dtype of the result; None for what x and
        the values promote to, or x's dtype for integer values. Without
        `jax_enable_x64` float64 is float32, as everywhere in JAX. Floats of 8 bits
        promote to nothing: beside another dtype they need it.

    Returns:
      y, of shape (..., *outputs).

    Raises:
      TypeError: `packed` is not packed or holds complex values, x or
        `preferred_element_type` is not floating point, or x and the values do not
        promote to one dtype.
      ValueError: shapes do not fit, or the named implementation cannot run.

    Example:
      >>> import jax.numpy as jnp, jaxsparse as js
      >>> packed = js.pack(jnp.eye(8), js.Block(4, 4))
      >>> js.sparse_dot(jnp.ones((2, 8)), packed).shape
      (2, 8)
    """
    if isinstance(packed, Tracer):
        raise TypeError(
            f"sparse_dot multiplies by a packed weight, not by a traced array of shape "
            f"{packed.shape}: functions that js.sparsify runs, and those exported with packed "
            "params=, see weights as if they were dense, so x @ w would work in them."
        )
    if not isinstance(packed, Packed):
        raise TypeError(
            f"sparse_dot multiplies by a packed weight, not by {type(packed).__name__}."
        )
    rows, shaped = as_rows(x, packed)
    return shaped(
        matrix_product(
            rows, packed, implementation=implementation, out_dtype=preferred_element_type
        )
    )


def as_rows(x: Array, packed: Packed) -> tuple[Array, Callable[[Array], Array]]:
    """x as a matrix of rows, and what gives a matrix of results the axes that y has.

    Raises:
      ValueError: x does not end in the inputs of the packed weight.
    """
    inputs, outputs = packed.input_shape, packed.output_shape
    batch = x.shape[: max(0, x.ndim - len(inputs))]
    if (*batch, *inputs) != x.shape:
        raise ValueError(
            f"x of shape {x.shape} does not end in {inputs}, the inputs of a packed weight "
            f"of shape {packed.shape}."
        )
    # Rows are cut among devices in their order: axes that are cut come first.
    cut = [i for i in range(len(batch)) if jax.typeof(x).sharding.spec[i] is not None]
    front = range(len(cut))
    x = jnp.moveaxis(x, cut, front)

    def shaped(y):
        return jnp.moveaxis(y.reshape(*x.shape[: len(batch)], *outputs), front, cut)

    return x.reshape(math.prod(batch), math.prod(inputs)), shaped


def check_product(x, packed: Packed, implementation: str | None):
    """Raises unless x can be multiplied by a packed weight, by an implementation that is here."""
    if implementation is not None:
        kernels.check(implementation)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(f"sparse_dot needs floating-point x, got {x.dtype}.")
    if jnp.issubdtype(packed.values.dtype, jnp.complexfloating):
        raise TypeError(
            f"sparse_dot needs real weights, this one of shape {packed.shape} is "
            f"{packed.values.dtype}: multiply by two packed weights, its real and its imaginary "
            "part, or by js.unpack of it."
        )
    if packed.batch_shape:
        raise ValueError(
            f"this packed weight stacks {packed.batch_shape} kernels: map over them with "
            "jax.vmap or jax.lax.scan."
        )


def matrix_product(x, packed: Packed, *, transpose=False, implementation=None, out_dtype=None):
    """x (M, K) by W (K, N), or x (M, N) by Wᵀ."""
    check_product(x, packed, implementation)
    scales = packed.scales
    out_dtype = _out_dtype(x, packed, out_dtype)
    if transpose and scales is not None:
        x = x * scales.astype(x.dtype)
    params = {"layout": packed.layout, "implementation": implementation}
    if scales is None or transpose:
        operands = same_varying_axes(sharded_by_rows(x), whole(packed.learned), *packed.index)
        params |= {"transpose": transpose, "out_dtype": jnp.dtype(out_dtype)}
        return product_p.bind(*operands, **params)
    weight = whole(packed.learned), whole(scales)
    operands = same_varying_axes(sharded_by_rows(x), *weight, *packed.index)
    params["out_dtype"] = jnp.promote_types(out_dtype, jnp.float32)
    return scaled_product_p.bind(*operands, **params).astype(out_dtype)


def _out_dtype(x, packed, asked):
    """What the product is rounded to."""
    if asked is not None:
        if not jnp.issubdtype(asked, jnp.floating):
            raise TypeError(
                f"preferred_element_type={jnp.dtype(asked).name} is not floating point: round or "
                "cast the result of sparse_dot."
            )
        return jax.dtypes.canonicalize_dtype(asked)
    if not jnp.issubdtype(packed.values.dtype, jnp.floating):
        return x.dtype
    try:
        return jnp.result_type(x, packed.values)
    except jax.dtypes.TypePromotionError as error:
        raise TypeError(
            f"x of {x.dtype} and a weight of {packed.values.dtype} have no dtype in common: name "
            "the result's, as in sparse_dot(..., preferred_element_type=jnp.float32)."
        ) from error


def sampled_product(x, g, packed: Packed, *, implementation=None, out_dtype=None):
    """The values of xᵀ @ g at the entries `packed` stores, for x (M, K) and g (M, N)."""
    return sampled_p.bind(
        *same_varying_axes(x, g, *packed.index),
        layout=packed.layout,
        out_dtype=jnp.dtype(out_dtype or jnp.result_type(x, g)),
        implementation=implementation,
    )


def sharded_by_rows(x):
    """x (M, K) sharded by rows at most: the inputs of a row meet in every sum."""
    rows, inputs = jax.typeof(x).sharding.spec
    return x if inputs is None else reshard(x, PartitionSpec(rows, None))


def whole(array):
    """An array of a weight on every device, as the product takes it.

    Under explicit axes this has to be written down, for a gradient to come back sharded as
    the array is.
    """
    sharded = any(axis is not None for axis in jax.typeof(array).sharding.spec)
    return reshard(array, PartitionSpec(*[None] * array.ndim)) if sharded else array


def same_varying_axes(*arrays):
    """Inside `shard_map`, marks every array as varying wherever one of them does."""
    axes = [jax.typeof(a).manual_axis_type.varying for a in arrays]
    union = frozenset().union(*axes)
    return [
        lax.pcast(a, tuple(union - own), to="varying") if union - own else a
        for a, own in zip(arrays, axes, strict=True)
    ]
