"""`sparse_dot`: multiply by a packed weight, on whatever the machine has.

Underneath are two bilinear JAX primitives, closed under differentiation:

    product   y = x @ W   or   y = x @ Wᵀ,    linear in x and in W's values
    sampled   v = (xᵀ @ g) where W stores,    linear in x and in g

    ∂product/∂x       is a product by the transpose
    ∂product/∂values  is a sampled product
    ∂sampled/∂x, ∂g   are products

so forward mode, reverse mode and any mix of the two need no other rule, and no
gradient is ever as large as the dense weight. Indices are operands: a new mask
with as many entries runs the program compiled for the old one.

Columns of quantized values have scales. A third primitive lets an implementation
multiply by them within its product; its derivatives are those of the two steps:

    scaled    y = (x @ W) * scales
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jax.sharding import ManualAxisType, PartitionSpec
from jaxtyping import Array, DTypeLike, Float

import jaxsparse.kernels as kernels
from jaxsparse.packed import Packed
from jaxsparse.partitioning import WHOLE, by_rows, lower_with_devices, sharded, without_mesh

_PLATFORMS = ("cpu", "cuda", "rocm", "tpu")


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
    implementation spreads the weight out.

    Args:
      x: of shape (..., *inputs), floating point. For a (K, N) kernel the inputs
        are one axis of K; for the kernel (heads, width, N) of an attention
        output with in_axis=(0, 1) they are (heads, width).
      packed: a `BlockSparse`, `NMSparse` or `CSC`, without stacked axes (map
        over those with `jax.vmap` or `jax.lax.scan`). Differentiate with
        respect to `packed.values`.
      implementation: the name of one in `js.implementations()`, or None for the
        best that supports the call.
      preferred_element_type: dtype of the result; None for what x and the values
        promote to, or x's dtype for int8 values.

    Returns:
      y, of shape (..., *outputs).

    Raises:
      TypeError: `packed` is not packed, or x is not floating point.
      ValueError: shapes do not fit, or the named implementation cannot run.

    Example:
      >>> import jax.numpy as jnp, jaxsparse as js
      >>> packed = js.pack(jnp.eye(8), js.Block(4, 4))
      >>> js.sparse_dot(jnp.ones((2, 8)), packed).shape
      (2, 8)
    """
    if not isinstance(packed, Packed):
        raise TypeError(
            f"sparse_dot multiplies by a packed weight, not by {type(packed).__name__}."
        )
    inputs, outputs = packed.input_shape, packed.output_shape
    batch = x.shape[: max(0, x.ndim - len(inputs))]
    if (*batch, *inputs) != x.shape:
        raise ValueError(
            f"x of shape {x.shape} does not end in {inputs}, the inputs of a packed weight "
            f"of shape {packed.shape}."
        )
    y = matrix_product(
        x.reshape(math.prod(batch), math.prod(inputs)),
        packed,
        implementation=implementation,
        out_dtype=preferred_element_type,
    )
    return y.reshape(*batch, *outputs)


def matrix_product(x, packed: Packed, *, transpose=False, implementation=None, out_dtype=None):
    """x (M, K) by W (K, N), or x (M, N) by Wᵀ."""
    if implementation is not None:
        kernels.check(implementation)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(f"sparse_dot needs floating-point x, got {x.dtype}.")
    if packed.batch_shape:
        raise ValueError(
            f"this packed weight stacks {packed.batch_shape} kernels: map over them with "
            "jax.vmap or jax.lax.scan."
        )
    scales = packed.scales
    if out_dtype is None:
        out_dtype = x.dtype if scales is not None else jnp.result_type(x, packed.values)
    if transpose and scales is not None:
        x = x * scales.astype(x.dtype)
    params = {"layout": packed.layout, "implementation": implementation}
    if scales is None or transpose:
        operands = _same_varying_axes(x, packed.values, *packed.index)
        params |= {"transpose": transpose, "out_dtype": jnp.dtype(out_dtype)}
        return product_p.bind(*operands, **params)
    operands = _same_varying_axes(x, packed.values, scales, *packed.index)
    params["out_dtype"] = jnp.promote_types(out_dtype, jnp.float32)
    return scaled_product_p.bind(*operands, **params).astype(out_dtype)


def sampled_product(x, g, packed: Packed, *, implementation=None, out_dtype=None):
    """The values of xᵀ @ g at the entries `packed` stores, for x (M, K) and g (M, N)."""
    return sampled_p.bind(
        *_same_varying_axes(x, g, *packed.index),
        layout=packed.layout,
        out_dtype=jnp.dtype(out_dtype or jnp.result_type(x, g)),
        implementation=implementation,
    )


# --- abstract evaluation -------------------------------------------------------------------------


def _product_abstract(x, values, *index, layout, transpose, out_dtype, implementation):
    del implementation
    _check_operands(layout, values.shape, index)
    source, target = layout.shape[::-1] if transpose else layout.shape
    if x.ndim != 2 or x.shape[1] != source:
        raise ValueError(f"x has shape {x.shape}, the layout {layout} needs (rows, {source}).")
    return _result(x, (x.shape[0], target), out_dtype, x, values, *index, rows=x.sharding.spec[0])


def _scaled_product_abstract(x, values, scales, *index, out_dtype, **params):
    y = _product_abstract(x, values, *index, transpose=False, out_dtype=out_dtype, **params)
    if scales.shape != y.shape[1:]:
        raise ValueError(f"scales of shape {scales.shape} do not fit y of shape {y.shape}.")
    return _result(x, y.shape, out_dtype, x, values, scales, *index, rows=x.sharding.spec[0])


def _sampled_abstract(x, g, *index, layout, out_dtype, implementation):
    del implementation
    _check_operands(layout, layout.values_shape, index)
    if (x.shape, g.shape) != tuple((x.shape[0], size) for size in layout.shape):
        raise ValueError(f"x {x.shape} and g {g.shape} do not fit the layout {layout}.")
    return _result(x, layout.values_shape, out_dtype, x, g, *index)


def _check_operands(layout, values_shape, index):
    shapes = tuple(i.shape for i in index)
    if values_shape != layout.values_shape or shapes != layout.index_shapes:
        raise ValueError(
            f"values {values_shape} and index {shapes} do not fit the layout {layout}, which "
            f"stores {layout.values_shape} and {layout.index_shapes}."
        )


def _result(like, shape, dtype, *operands, rows=None):
    """A result on the mesh of `like`, varying wherever an operand does, sharded by rows only."""
    varying = frozenset().union(*(o.manual_axis_type.varying for o in operands))
    manual = {"manual_axis_type": ManualAxisType(varying=varying)} if varying else {}
    sharding = like.sharding.update(spec=PartitionSpec(rows, *[None] * (len(shape) - 1)))
    return like.update(shape=shape, dtype=dtype, sharding=sharding, weak_type=False, **manual)


def _same_varying_axes(*arrays):
    """Inside `shard_map`, marks every array as varying wherever one of them does."""
    axes = [jax.typeof(a).manual_axis_type.varying for a in arrays]
    union = frozenset().union(*axes)
    return [
        lax.pcast(a, tuple(union - own), to="varying") if union - own else a
        for a, own in zip(arrays, axes, strict=True)
    ]


# --- lowering ------------------------------------------------------------------------------------


def _register_lowerings(primitive, op, function_of):
    def rule(platform):
        def lower(ctx, *operands, implementation, **params):
            x, values = ctx.avals_in[:2]
            target = platform or ctx.module_context.platforms[0]
            whole = sharded(ctx) and target in WHOLE
            module = kernels.choose(
                op,
                implementation,
                target,
                ctx.module_context.lowering_parameters.for_export,
                whole,
                x=x,
                values=values,
                **params,
            )
            function = functools.partial(function_of(module, op), **params)
            if sharded(ctx) and not whole:
                function = by_rows(function, op)
            return mlir.lower_fun(function, multiple_results=False)(without_mesh(ctx), *operands)

        return lower

    mlir.register_lowering(primitive, rule(None))
    for platform in _PLATFORMS:
        mlir.register_lowering(primitive, rule(platform), platform=platform)


def _scaled_product_of(module, _):
    """A module's own, or its product and a multiplication."""
    return getattr(module, "scaled_product", None) or _then_scales(module.product)


def _then_scales(product):
    def product_then_scales(x, values, scales, *index, **params):
        return _times(product(x, values, *index, transpose=False, **params), scales)

    return product_then_scales


def _times(y, scales):
    return (y * scales).astype(y.dtype)


def _primitive(name, op, abstract, function_of=getattr):
    primitive = Primitive(name)
    primitive.def_abstract_eval(abstract)

    @functools.cache
    def compiled(params):
        return jax.jit(functools.partial(primitive.bind, **dict(params)))

    primitive.def_impl(lambda *args, **params: compiled(tuple(sorted(params.items())))(*args))
    _register_lowerings(primitive, op, function_of)
    lower_with_devices(primitive)
    return primitive


product_p = _primitive("sparse_product", "product", _product_abstract)
sampled_p = _primitive("sparse_sampled_product", "sampled", _sampled_abstract)
scaled_product_p = _primitive(
    "sparse_scaled_product", "product", _scaled_product_abstract, _scaled_product_of
)


# --- differentiation -----------------------------------------------------------------------------


def _bilinear_jvp(primitive, primals, tangents, **params):
    a, b, *index = primals
    da, db, *_ = tangents
    out = primitive.bind(a, b, *index, **params)
    terms = []
    if type(da) is not ad.Zero:
        terms.append(primitive.bind(da, b, *index, **params))
    if type(db) is not ad.Zero:
        terms.append(primitive.bind(a, db, *index, **params))
    if not terms:
        return out, ad.Zero(jax.typeof(out).to_tangent_aval())
    return out, functools.reduce(jnp.add, terms)


def _product_transpose(ct, x, values, *index, layout, transpose, out_dtype, implementation):
    del out_dtype
    nothing = [None] * len(index)
    if type(ct) is ad.Zero:
        return [None, None, *nothing]
    params = {"layout": layout, "implementation": implementation}
    if ad.is_undefined_primal(x):
        ct_x = product_p.bind(
            ct, values, *index, transpose=not transpose, out_dtype=x.aval.dtype, **params
        )
        return [ct_x, None, *nothing]
    left, right = (ct, x) if transpose else (x, ct)
    ct_values = sampled_p.bind(left, right, *index, out_dtype=values.aval.dtype, **params)
    return [None, ct_values, *nothing]


def _scaled_product_jvp(primals, tangents, **params):
    x, values, scales, *index = primals
    dx, dvalues, dscales, *dindex = tangents
    if type(dscales) is ad.Zero:
        return _bilinear_jvp(scaled_product_p, primals, tangents, **params)
    # dscales multiplies the product without scales: compute that once, for both.
    y, dy = _bilinear_jvp(
        product_p, (x, values, *index), (dx, dvalues, *dindex), transpose=False, **params
    )
    tangent = _times(y, dscales)
    if type(dy) is not ad.Zero:
        tangent += _times(dy, scales)
    return _times(y, scales), tangent


def _scaled_product_transpose(ct, x, values, scales, *index, **params):
    if type(ct) is ad.Zero:
        return [None] * (3 + len(index))
    if ad.is_undefined_primal(scales):
        y = product_p.bind(x, values, *index, transpose=False, **params)
        ct_scales = jnp.sum(ct * y, 0).astype(scales.aval.dtype)
        return [None, None, ct_scales, *[None] * len(index)]
    ct_x, ct_values, *nothing = _product_transpose(
        _times(ct, scales), x, values, *index, transpose=False, **params
    )
    return [ct_x, ct_values, None, *nothing]


def _sampled_transpose(ct, x, g, *index, layout, out_dtype, implementation):
    del out_dtype
    nothing = [None] * len(index)
    if type(ct) is ad.Zero:
        return [None, None, *nothing]
    params = {"layout": layout, "implementation": implementation}
    if ad.is_undefined_primal(x):
        ct_x = product_p.bind(g, ct, *index, transpose=True, out_dtype=x.aval.dtype, **params)
        return [ct_x, None, *nothing]
    ct_g = product_p.bind(x, ct, *index, transpose=False, out_dtype=g.aval.dtype, **params)
    return [None, ct_g, *nothing]


ad.primitive_jvps[product_p] = functools.partial(_bilinear_jvp, product_p)
ad.primitive_jvps[sampled_p] = functools.partial(_bilinear_jvp, sampled_p)
ad.primitive_jvps[scaled_product_p] = _scaled_product_jvp
ad.primitive_transposes[product_p] = _product_transpose
ad.primitive_transposes[sampled_p] = _sampled_transpose
ad.primitive_transposes[scaled_product_p] = _scaled_product_transpose


# --- batching ------------------------------------------------------------------------------------


def _product_batching(primitive, operands, axes, **params):
    x, *weight = operands
    if any(axis is not None for axis in axes[1:]):
        return _scan_batching(primitive, operands, axes, **params)
    # One weight for the whole batch: its rows are more rows of x.
    x = jnp.moveaxis(x, axes[0], 0)
    y = primitive.bind(x.reshape(-1, x.shape[2]), *weight, **params)
    return y.reshape(*x.shape[:2], -1), 0


def _scaled_product_batching(operands, axes, **params):
    if axes[2] is None:
        return _product_batching(scaled_product_p, operands, axes, **params)
    steps = functools.partial(_then_scales(product_p.bind), **params)
    return jax.vmap(steps, axes)(*operands), 0


def _scan_batching(primitive, operands, axes, **params):
    """One call after another, for weights that differ along the batch."""
    batched = {
        i: jnp.moveaxis(operand, axis, 0)
        for i, (operand, axis) in enumerate(zip(operands, axes, strict=True))
        if axis is not None
    }

    def one(_, rows):
        return None, primitive.bind(*[rows.get(i, o) for i, o in enumerate(operands)], **params)

    return lax.scan(one, None, batched)[1], 0


batching.primitive_batchers[product_p] = functools.partial(_product_batching, product_p)
batching.primitive_batchers[sampled_p] = functools.partial(_scan_batching, sampled_p)
batching.primitive_batchers[scaled_product_p] = _scaled_product_batching
