"""Products of two dtypes, and those that sum over nothing, wherever in a program they are."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend import core

from jaxsparse import jaxprs
from jaxsparse.export.plain_products import plain_products

X = jnp.asarray(np.random.default_rng(0).standard_normal((4, 4)), jnp.float32)
HEADS = jnp.diag(jnp.array([1, 0, 2, 3]))


def product(x):
    return HEADS @ x


def halves(x):
    return jax.lax.dot(x, x.astype(jnp.bfloat16), preferred_element_type=jnp.float32)


FUNCTIONS = {
    "alone": product,
    "halves": halves,
    "in jit": jax.jit(product),
    "in a loop": lambda x: jax.lax.scan(lambda c, _: (product(c), c), x, None, length=3),
    "in a branch": lambda x: jax.lax.cond(x[0, 0] > 0, product, jnp.tanh, x),
    "checkpointed": jax.checkpoint(product),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_operands_are_cast_to_the_result(name):
    jaxpr = jax.make_jaxpr(FUNCTIONS[name])(X)
    program = plain_products(jaxpr)
    products = [e for e in jaxprs.equations(program) if e.primitive.name == "dot_general"]
    assert len(products) == 1, program
    assert {v.aval.dtype for v in (*products[0].invars, *products[0].outvars)} == {X.dtype}
    expected, found = (core.jaxpr_as_fun(p)(X) for p in (jaxpr, program))
    for a, b in zip(expected, found, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)


def test_a_program_without_is_returned_as_it_is():
    jaxpr = jax.make_jaxpr(lambda x: x @ x)(X)
    assert plain_products(jaxpr) is jaxpr


OUTER = {
    "a mask of heads": ("h,bhd->bhd", (4,), (2, 4, 8)),
    "at the end": ("bhqk,h->bhqk", (2, 3, 4, 4), (3,)),
    "of everything": ("ab,cd->abcd", (2, 3), (4, 5)),
    "by batch": ("ba,bc->bac", (2, 3), (2, 5)),
}


@pytest.mark.parametrize("dtype", ["int32", "float32"])
@pytest.mark.parametrize("name", OUTER)
def test_what_sums_over_nothing_is_multiplied(name, dtype):
    spelled, *shapes = OUTER[name]
    random = np.random.default_rng(0)
    x = jnp.asarray(random.integers(-3, 4, shapes[0]), dtype)
    y = jnp.asarray(random.standard_normal(shapes[1]), jnp.float32)
    jaxpr = jax.make_jaxpr(lambda x, y: jnp.einsum(spelled, x, y))(x, y)
    assert any(e.primitive.name == "dot_general" for e in jaxpr.eqns)
    program = plain_products(jaxpr)
    assert not any(e.primitive.name == "dot_general" for e in program.eqns)
    found, expected = (core.jaxpr_as_fun(p)(x, y)[0] for p in (program, jaxpr))
    np.testing.assert_array_equal(found, expected)
    assert found.dtype == expected.dtype
