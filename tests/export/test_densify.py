"""Products by packed weights become dense ones, whatever leads to their arrays."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from jax.extend import core

import jaxsparse as js
from jaxsparse import jaxprs
from jaxsparse.export.densify import densified
from jaxsparse.export.program import ExportError
from tests.packed_cases import BY_NAME, STORAGES

X = np.random.default_rng(0).standard_normal((6, 32)).astype(np.float32)
WEIGHT = np.random.default_rng(1).standard_normal((32, 32)).astype(np.float32)


def drawn(storage, dtype=None):
    return storage.pack(WEIGHT, storage.mask(np.random.default_rng(2), 32, 32, 0.5), dtype)


HELD = js.pack(WEIGHT, js.Block(4, 16), np.random.default_rng(2).random((32, 32)) < 0.5)
FIRST, SECOND = HELD, drawn(STORAGES[1])


def dense_of(function, *inputs):
    """What a program without products of ours computes, and its jaxpr."""
    program = densified(jax.make_jaxpr(function)(*inputs))
    names = {equation.primitive.name for equation in jaxprs.equations(program)}
    assert not any(name.startswith("sparse_") for name in names)
    return core.jaxpr_as_fun(program)(*inputs)[0], program


CASES = [pytest.param(s, None, id=s.name) for s in STORAGES] + [
    pytest.param(BY_NAME[name], jnp.int8, id=f"{name}, int8")
    for name in ("block4x16", "bitmap", "2of4")
]


@pytest.mark.parametrize(("storage", "dtype"), CASES)
def test_every_storage(storage, dtype):
    packed = drawn(storage, dtype)
    for function, weight in (
        (lambda x: js.sparse_dot(x, packed), js.unpack(packed)),
        (lambda x: js.sparsify(lambda w, x: x @ w.T)(packed, x), js.unpack(packed).T),
    ):
        got, program = dense_of(function, X)
        np.testing.assert_allclose(got, X @ weight, rtol=1e-4, atol=1e-5)
        # The weight, and for the transposed product of int8 the scales of x's columns.
        shapes = sorted(c.shape for c in program.consts if c.ndim)
        assert shapes in ([(32, 32)], [(32,), (32, 32)])


def layer(x, packed):
    return jnp.tanh(js.sparse_dot(x, packed))


def looped(x):
    return jax.lax.scan(lambda h, _: (layer(h, FIRST), None), x, None, length=2)[0]


def branched(x):
    return jax.lax.cond(x.sum() > 0, lambda x: layer(x, FIRST), lambda x: layer(x, SECOND), x)


def cast(x):
    return js.sparsify(lambda w, x: x @ (2 * w.astype(jnp.bfloat16)).astype(jnp.float32))(FIRST, x)


@pytest.mark.parametrize(
    "function",
    [
        looped,
        branched,
        lambda x: jax.lax.while_loop(lambda h: h.sum() < -9, lambda h: layer(h, FIRST), x),
        cast,
        lambda x: jax.checkpoint(jax.jit(lambda x: layer(x, FIRST)))(x),
        lambda x: x + js.sparse_dot(jnp.ones((1, 32)), FIRST),
    ],
    ids=["scan", "cond", "while", "cast", "checkpoint", "constant rows"],
)
def test_what_surrounds_a_product(function):
    got, program = dense_of(function, X)
    np.testing.assert_allclose(got, function(X), rtol=1e-4, atol=1e-5)
    # Nothing of the storage is left: no bits, no pointers.
    kept = [v.aval.dtype for e in jaxprs.equations(program) for v in e.outvars]
    assert not any(jnp.issubdtype(dtype, jnp.unsignedinteger) for dtype in kept)
    assert all(c.dtype == jnp.float32 or c.size == 1 for c in program.consts)


def test_a_batch_of_any_size_stays_open():
    (size,) = export.symbolic_shape("b")
    shape = jax.ShapeDtypeStruct((size, 32), jnp.float32)
    program = densified(jax.make_jaxpr(lambda x: layer(x, FIRST) + jnp.zeros(x.shape))(shape))
    assert program.out_avals[0].shape == (size, 32)


def test_programs_without_products_are_left_alone():
    program = jax.make_jaxpr(jnp.tanh)(X)
    assert densified(program) is program


AXES = {"in_axis": 1, "out_axis": 2, "batch_axis": 0}
STACK = js.pack(np.stack([WEIGHT, WEIGHT]), js.Block(4, 16), **AXES)


def of_slices(x):
    return jax.lax.scan(lambda h, packed: (layer(h, packed), None), x, STACK)[0]


def gradient(x):
    return jax.grad(lambda v: js.sparse_dot(x, FIRST.with_values(v)).sum())(FIRST.values)


@pytest.mark.parametrize(
    ("function", "inputs", "message"),
    [
        (layer, (X, FIRST), r"sparse_product in .*test_densify\.py.* closes over would work"),
        (of_slices, (X,), r"test_densify\.py.*js\.unpack_params of those that a loop takes"),
        (gradient, (X,), r"sparse_sampled_product in .* is part of a gradient"),
    ],
)
def test_what_cannot_be_dense_is_named_with_a_cure(function, inputs, message):
    program = jax.make_jaxpr(function)(*inputs)
    with pytest.raises(ExportError, match=message):
        densified(program)
