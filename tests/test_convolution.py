"""Packed convolutions by blocks of places: the same numbers, in little memory."""

import functools

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from test_sparsify import same, weight

from jaxsparse.kernels import windows
from jaxsparse.patterns.base import Unstructured
from jaxsparse.patterns.groups import Block
from jaxsparse.patterns.nm import NM
from jaxsparse.products.sparsify import sparsify

# Shape of x without channels, window, and options of the convolution.
GEOMETRIES = {
    "same": ((2, 7, 5), (3, 3), {}),
    "valid": ((2, 7, 6), (3, 2), {"padding": "VALID"}),
    "strided": ((1, 9, 8), (3, 3), {"window_strides": (2, 3)}),
    "gaps between windows": ((1, 11, 4), (2, 2), {"window_strides": (3, 1), "padding": "VALID"}),
    "dilated": ((1, 9, 7), (3, 2), {"rhs_dilation": (2, 3)}),
    "transposed": ((1, 4, 5), (3, 3), {"lhs_dilation": (2, 2), "padding": [(2, 1), (1, 2)]}),
    "cropped": ((1, 9, 8), (3, 3), {"padding": [(-1, 0), (2, -2)]}),
    "one axis": ((3, 11), (4,), {"window_strides": (2,), "padding": "SAME"}),
    "three axes": ((1, 4, 3, 5), (2, 2, 3), {"padding": "SAME_LOWER"}),
}
# The same where windows have no place, or one.
EDGES = {
    "larger than the image": ((2, 5, 2), (3, 3), {"padding": [(0, 0), (0, -1)]}),
    "larger by dilation": ((1, 3, 4), (2, 2), {"rhs_dilation": (4, 1), "padding": "VALID"}),
    "no image": ((2, 0, 3), (2, 2), {"padding": "VALID"}),
    "strides beyond the image": ((1, 4, 5), (3, 2), {"window_strides": (2**31, 2**30)}),
}


def convolve(axes, **options):
    letters = "HWD"[:axes]
    options = {"window_strides": (1,) * axes, "padding": "SAME"} | options
    numbers = (f"N{letters}C", f"{letters}IO", f"N{letters}C")
    return lambda w, x: lax.conv_general_dilated(x, w, dimension_numbers=numbers, **options)


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks of three places or so, for images of any size."""
    monkeypatch.setattr(windows, "_LARGE", 0)
    monkeypatch.setattr(windows, "_BLOCK", 4000)
    monkeypatch.setattr(windows, "_ROWS", 3)


def loops(function, *args):
    return "while" in jax.jit(function).lower(*args).as_text()


@pytest.mark.parametrize("pattern", [Block(4, 16), Unstructured(), NM(2, 4)], ids=str)
@pytest.mark.parametrize("name", [*GEOMETRIES, *EDGES])
def test_packed_convolutions_are_dense_ones(name, pattern):
    (batch, *sizes), window, options = (GEOMETRIES | EDGES)[name]
    dense, packed = weight((*window, 8, 16), pattern, in_axis=-2)
    x = jax.random.normal(jax.random.key(1), (batch, *sizes, 8))
    same(convolve(len(window), **options), dense, packed, x)


@pytest.mark.parametrize("name", GEOMETRIES)
def test_blocks_give_what_the_dense_convolution_gives(name, small_blocks):
    (batch, *sizes), window, options = GEOMETRIES[name]
    dense, packed = weight((*window, 8, 16), Block(4, 16), in_axis=-2)
    x = jax.random.normal(jax.random.key(1), (batch, *sizes, 8))
    function = convolve(len(window), **options)
    run = functools.partial(sparsify, implementation="xla")
    assert loops(run(function), packed, x)
    np.testing.assert_allclose(run(function)(packed, x), function(dense, x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("pattern", [Unstructured(), NM(2, 4)], ids=["bitmap", "nm"])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_blocks_give_what_all_patches_at_once_give(pattern, dtype, monkeypatch, small_blocks):
    _, packed = weight((3, 3, 8, 16), pattern, in_axis=-2)
    packed = packed.with_values(packed.values.astype(dtype))
    x = jax.random.normal(jax.random.key(1), (2, 7, 9, 8)).astype(dtype)
    run = sparsify(convolve(2), implementation="xla")
    actual = jax.jit(run)(packed, x)
    monkeypatch.setattr(windows, "_LARGE", 2**40)
    jax.clear_caches()
    assert not loops(run, packed, x)
    expected = jax.jit(run)(packed, x)
    assert actual.dtype == dtype
    np.testing.assert_allclose(*(np.float32(y) for y in (actual, expected)), rtol=1e-2, atol=1e-5)


@pytest.mark.parametrize("implementation", [None, "xla"])
def test_convolutions_under_transformations(implementation, small_blocks):
    """Mapped over images and over kernels, forward mode, remat, a derivative's derivative."""
    dense, packed = weight((3, 3, 8, 16), Block(4, 16), in_axis=-2)
    x = jax.random.normal(jax.random.key(1), (2, 2, 5, 6, 8))
    function = convolve(2)
    run = sparsify(function, implementation=implementation, on_dense="error")
    check = functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-3)
    expected = jax.vmap(function, (None, 0))(dense, x)
    check(jax.vmap(run, (None, 0))(packed, x), expected)
    kernels = jnp.stack([packed.values, -packed.values])
    several = jax.vmap(lambda values: run(packed.with_values(values), x[0]))(kernels)
    check(several, jnp.stack([expected[0], -expected[0]]))

    def loss(run, w, x):
        return jnp.sum(jnp.sin(jax.checkpoint(run)(w, x)))

    def hessian_product(run, w):
        return jax.jvp(jax.grad(lambda x: loss(run, w, x)), (x[0],), (x[1],))

    jax.tree.map(check, hessian_product(run, packed), hessian_product(function, dense))


def test_only_what_is_differentiated_costs_a_product(small_blocks):
    _, packed = weight((3, 3, 8, 16), Block(4, 16), in_axis=-2)
    x = jax.random.normal(jax.random.key(1), (2, 5, 6, 8))

    def loss(values, x):
        return jnp.sum(sparsify(convolve(2))(packed.with_values(values), x) ** 2)

    def products(argnums):
        program = str(jax.make_jaxpr(jax.grad(loss, argnums))(packed.values, x))
        kinds = "convolution", "product", "sampled_product"
        return tuple(program.count(f"= sparse_{kind}[") for kind in kinds)

    assert products(0) == (1, 0, 1)
    assert products(1) == (1, 1, 0)
    assert products((0, 1)) == (1, 1, 1)


def test_a_large_image_takes_little_memory():
    _, packed = weight((3, 3, 64, 64), NM(2, 4), in_axis=-2)
    x = jax.ShapeDtypeStruct((4, 64, 64, 64), jnp.float32)
    compiled = jax.jit(sparsify(convolve(2), implementation="xla")).lower(packed, x).compile()
    image = 4 * 64 * 64 * 64 * 4  # bytes of x, and of y; its patches are nine times that
    memory = compiled.memory_analysis()
    assert memory is not None and memory.temp_size_in_bytes < 3.5 * image


@pytest.mark.parametrize("implementation", [None, "xla"])
def test_a_sharded_batch_stays_where_it_is(implementation, small_blocks):
    _, packed = weight((3, 3, 8, 16), Block(4, 16), in_axis=-2)
    x = jax.random.normal(jax.random.key(1), (8, 5, 6, 8))
    run = sparsify(convolve(2), implementation=implementation)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    rows = jax.device_put(x, NamedSharding(mesh, P("data")))
    weights = jax.device_put(packed, NamedSharding(mesh, P()))
    compiled = jax.jit(run).lower(weights, rows).compile()
    program = compiled.as_text() or ""
    assert not any(name in program for name in ("all-gather", "all-to-all", "all-reduce"))
    actual = compiled(weights, rows)
    assert actual.sharding.spec[0] == "data"
    np.testing.assert_allclose(actual, run(packed, x), rtol=1e-4, atol=1e-4)


def test_loops_are_for_cpus(small_blocks):
    _, packed = weight((3, 3, 8, 16), NM(2, 4), in_axis=-2)
    x = jnp.ones((2, 5, 6, 8))
    arrays, tree = jax.tree.flatten(packed)
    run = jax.jit(lambda x, *arrays: sparsify(convolve(2))(jax.tree.unflatten(tree, arrays), x))

    def exported(*platforms):
        return jax.export.export(run, platforms=platforms)(x, *arrays)

    assert "while" in exported("cpu").mlir_module()
    assert "while" not in exported("cuda").mlir_module()
    either = exported("cpu", "cuda", "tpu")
    np.testing.assert_allclose(either.call(x, *arrays), run(x, *arrays), rtol=1e-5, atol=1e-5)


def test_a_batch_of_any_size_is_exported():
    dense, packed = weight((3, 3, 8, 16), Block(4, 16), in_axis=-2)
    arrays, tree = jax.tree.flatten(packed)
    run = jax.jit(lambda x, *arrays: sparsify(convolve(2))(jax.tree.unflatten(tree, arrays), x))
    image = jax.ShapeDtypeStruct((*jax.export.symbolic_shape("batch"), 5, 6, 8), jnp.float32)
    x = jax.random.normal(jax.random.key(1), (2, 5, 6, 8))
    actual = jax.export.export(run)(image, *arrays).call(x, *arrays)
    np.testing.assert_allclose(actual, convolve(2)(dense, x), rtol=1e-4, atol=1e-4)
