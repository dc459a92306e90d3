"""The JAX primitives underneath `sparse_dot`.

Two of them are bilinear, and closed under differentiation:

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

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jax.sharding import ManualAxisType, PartitionSpec

import jaxsparse.kernels as kernels
from jaxsparse.products.partitioning import (
    WHOLE,
    by_rows,
    lower_with_devices,
    sharded,
    without_mesh,
)

_PLATFORMS = ("cpu", "cuda", "rocm", "tpu")


# --- abstract evaluation -------------------------------------------------------------------------


def _product_abstract(x, values, *index, layout, transpose, out_dtype, implementation):
    del implementation
    check_operands(layout, values.shape, index)
    source, target = layout.shape[::-1] if transpose else layout.shape
    if x.ndim != 2 or x.shape[1] != source:
        raise ValueError(f"x has shape {x.shape}, the layout {layout} needs (rows, {source}).")
    return rows_result(
        x, (x.shape[0], target), out_dtype, x, values, *index, rows=x.sharding.spec[0]
    )


def _scaled_product_abstract(x, values, scales, *index, out_dtype, **params):
    y = _product_abstract(x, values, *index, transpose=False, out_dtype=out_dtype, **params)
    if scales.shape != y.shape[1:]:
        raise ValueError(f"scales of shape {scales.shape} do not fit y of shape {y.shape}.")
    return rows_result(x, y.shape, out_dtype, x, values, scales, *index, rows=x.sharding.spec[0])


def _sampled_abstract(x, g, *index, layout, out_dtype, implementation):
    del implementation
    check_operands(layout, layout.values_shape, index)
    if (x.shape, g.shape) != tuple((x.shape[0], size) for size in layout.shape):
        raise ValueError(f"x {x.shape} and g {g.shape} do not fit the layout {layout}.")
    return rows_result(x, layout.values_shape, out_dtype, x, g, *index)


def check_operands(layout, values_shape, index):
    """Raises unless a layout describes values and an index of these shapes."""
    shapes = tuple(i.shape for i in index)
    if values_shape != layout.values_shape or shapes != layout.index_shapes:
        raise ValueError(
            f"values {values_shape} and index {shapes} do not fit the layout {layout}, which "
            f"stores {layout.values_shape} and {layout.index_shapes}."
        )


def rows_result(like, shape, dtype, *operands, rows=None):
    """A result on the mesh of `like`, varying wherever an operand does, sharded by rows only."""
    varying = frozenset().union(*(o.manual_axis_type.varying for o in operands))
    manual = {"manual_axis_type": ManualAxisType(varying=varying)} if varying else {}
    sharding = like.sharding.update(spec=PartitionSpec(rows, *[None] * (len(shape) - 1)))
    return like.update(shape=shape, dtype=dtype, sharding=sharding, weak_type=False, **manual)


# --- lowering ------------------------------------------------------------------------------------


def _register_lowerings(primitive, op, function_of, empty_of):
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
            layout = params["layout"]
            if 0 in (*layout.shape, *layout.values_shape, x.shape[0]):
                function = empty_of(ctx.avals_out[0], **params)  # no implementation need know of it
            if sharded(ctx) and not whole:
                function = by_rows(function, op)
            return mlir.lower_fun(function, multiple_results=False)(without_mesh(ctx), *operands)

        return lower

    mlir.register_lowering(primitive, rule(None))
    for platform in _PLATFORMS:
        mlir.register_lowering(primitive, rule(platform), platform=platform)


def _nothing(out, **_):
    """A product that sums nothing up, or has no entries."""
    return lambda *_: jnp.zeros(out.shape, out.dtype)


def _scaled_product_of(module, _):
    """A module's own, or its product and a multiplication."""
    return getattr(module, "scaled_product", None) or _then_scales(module.product)


def _then_scales(product):
    def product_then_scales(x, values, scales, *index, **params):
        return _times(product(x, values, *index, transpose=False, **params), scales)

    return product_then_scales


def _times(y, scales):
    return (y * scales).astype(y.dtype)


def product_primitive(name, op, abstract, function_of=getattr, empty_of=_nothing):
    """A primitive whose rule for every platform is what `kernels.choose` finds for it.

    Args:
      name: of the primitive.
      op: what `kernels.choose` calls it.
      abstract: its abstract evaluation; `layout` and `implementation` are among its parameters.
      function_of: of a module and `op`, what the module computes it by.
      empty_of: of the result's type and the parameters, what computes it where there is nothing
        to multiply.
    """
    primitive = Primitive(name)
    primitive.def_abstract_eval(abstract)

    @functools.cache
    def compiled(params):
        return jax.jit(functools.partial(primitive.bind, **dict(params)))

    primitive.def_impl(lambda *args, **params: compiled(tuple(sorted(params.items())))(*args))
    _register_lowerings(primitive, op, function_of, empty_of)
    lower_with_devices(primitive)
    return primitive


product_p = product_primitive("sparse_product", "product", _product_abstract)
sampled_p = product_primitive("sparse_sampled_product", "sampled", _sampled_abstract)
scaled_product_p = product_primitive(
    "sparse_scaled_product", "product", _scaled_product_abstract, _scaled_product_of
)


# --- differentiation -----------------------------------------------------------------------------


def bilinear_jvp(primitive, primals, tangents, **params):
    """The derivative of what is linear in its first operand and in its second."""
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
    params = {"layout": layout, "implementation": implementation}
    if ad.is_undefined_primal(x):
        ct_x = product_p.bind(
            ct, values, *index, transpose=not transpose, out_dtype=x.aval.dtype, **params
        )
        return [ct_x, None, *[None] * len(index)]
    left, right = (ct, x) if transpose else (x, ct)
    ct_values = sampled_p.bind(left, right, *index, out_dtype=values.aval.dtype, **params)
    return [None, ct_values, *[None] * len(index)]


def _scaled_product_jvp(primals, tangents, **params):
    x, values, scales, *index = primals
    dx, dvalues, dscales, *dindex = tangents
    if type(dscales) is ad.Zero:
        return bilinear_jvp(scaled_product_p, primals, tangents, **params)
    # dscales multiplies the product without scales: compute that once, for both.
    y, dy = bilinear_jvp(
        product_p, (x, values, *index), (dx, dvalues, *dindex), transpose=False, **params
    )
    tangent = _times(y, dscales)
    if type(dy) is not ad.Zero:
        tangent += _times(dy, scales)
    return _times(y, scales), tangent


def _scaled_product_transpose(ct, x, values, scales, *index, **params):
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
    params = {"layout": layout, "implementation": implementation}
    if ad.is_undefined_primal(x):
        ct_x = product_p.bind(g, ct, *index, transpose=True, out_dtype=x.aval.dtype, **params)
        return [ct_x, None, *[None] * len(index)]
    ct_g = product_p.bind(x, ct, *index, transpose=False, out_dtype=g.aval.dtype, **params)
    return [None, ct_g, *[None] * len(index)]


def unless_zero(transpose):
    """A rule for cotangents that are something; of zero no operand gets any."""

    def rule(ct, *operands, **params):
        if type(ct) is ad.Zero:
            return [None] * len(operands)
        return transpose(ct, *operands, **params)

    return rule


ad.primitive_jvps[product_p] = functools.partial(bilinear_jvp, product_p)
ad.primitive_jvps[sampled_p] = functools.partial(bilinear_jvp, sampled_p)
ad.primitive_jvps[scaled_product_p] = _scaled_product_jvp
ad.primitive_transposes[product_p] = unless_zero(_product_transpose)
ad.primitive_transposes[sampled_p] = unless_zero(_sampled_transpose)
ad.primitive_transposes[scaled_product_p] = unless_zero(_scaled_product_transpose)


# --- batching ------------------------------------------------------------------------------------


def rows_batching(primitive, operands, axes, **params):
    """The batching rule of a product whose first operand has rows, and the others none."""
    x, *weight = operands
    if any(axis is not None for axis in axes[1:]):
        return scan_batching(primitive, operands, axes, **params)
    # One weight for the whole batch: its rows are more rows of x.
    x = jnp.moveaxis(x, axes[0], 0)
    y = primitive.bind(x.reshape(x.shape[0] * x.shape[1], x.shape[2]), *weight, **params)
    return y.reshape(*x.shape[:2], y.shape[1]), 0


def _scaled_product_batching(operands, axes, **params):
    if axes[2] is None:
        return rows_batching(scaled_product_p, operands, axes, **params)
    steps = functools.partial(_then_scales(product_p.bind), **params)
    return jax.vmap(steps, axes)(*operands), 0


def scan_batching(primitive, operands, axes, **params):
    """One call after another, for weights that differ along the batch."""
    batched = {
        i: jnp.moveaxis(operand, axis, 0)
        for i, (operand, axis) in enumerate(zip(operands, axes, strict=True))
        if axis is not None
    }

    def one(_, rows):
        return None, primitive.bind(*[rows.get(i, o) for i, o in enumerate(operands)], **params)

    return lax.scan(one, None, batched)[1], 0


batching.primitive_batchers[product_p] = functools.partial(rows_batching, product_p)
batching.primitive_batchers[sampled_p] = functools.partial(scan_batching, sampled_p)
batching.primitive_batchers[scaled_product_p] = _scaled_product_batching
