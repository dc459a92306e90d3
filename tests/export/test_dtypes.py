"""Products of two dtypes become those of one, wherever in a program they are."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend import core

from jaxsparse import jaxprs
from jaxsparse.export.dtypes import of_one_dtype

X = jnp.asarray(np.random.default_rng(0).standard_normal((4, 4)), jnp.float32)
HEADS = jnp.array([1, 0, 2, 3])


def product(x):
    return jnp.einsum("h,hq->hq", HEADS, x)


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
    program = of_one_dtype(jaxpr)
    products = [e for e in jaxprs.equations(program) if e.primitive.name == "dot_general"]
    assert len(products) == 1
    assert {v.aval.dtype for v in (*products[0].invars, *products[0].outvars)} == {X.dtype}
    expected, found = (core.jaxpr_as_fun(p)(X) for p in (jaxpr, program))
    for a, b in zip(expected, found, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)


def test_a_program_without_is_returned_as_it_is():
    jaxpr = jax.make_jaxpr(lambda x: x @ x)(X)
    assert of_one_dtype(jaxpr) is jaxpr
