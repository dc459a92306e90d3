"""What counts as the same outputs: floats up to rounding, all else exactly."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsparse.comparing import compare

X = jax.random.normal(jax.random.key(0), (64, 4))


def agree(new, reference, x=X):
    compare(new, reference, [x], "the new one", ("", "mend it"), other="the old one")


@pytest.mark.parametrize(
    ("new", "reference", "message"),
    [
        (lambda x: x.argmax(1), lambda x: x.argmax(1).at[3].add(1), r"1 of 64 outputs of int32"),
        (lambda x: x >= 0, lambda x: x < 0, r"256 of 256 outputs of bool"),
        (lambda x: x.astype(jnp.int8), lambda x: x.astype(jnp.int16), "returns int8, .* int16"),
        (lambda x: x.astype(jnp.bfloat16), lambda x: x, "returns bfloat16, the old one float32"),
        (
            lambda x: jnp.where(x > 2, -1e30, x + 1e-2),
            lambda x: jnp.where(x > 2, -1e30, x),
            r"differ by 0\.01",
        ),
        (lambda x: jnp.where(x > 2, jnp.inf, x), lambda x: x, "differ by inf"),
        (lambda x: x, lambda x: jnp.where(x > 2, jnp.inf, x), "differ by inf"),
        (lambda x: jnp.where(x > 2, jnp.nan, x), lambda x: x, "differ by nan"),
        (lambda x: x * 1e-30, lambda x: x * 0, r"where 0 is their usual size"),
    ],
    ids=["argmax", "truths", "integers", "floats", "mask", "inf", "no inf", "nan", "zeros"],
)
def test_outputs_that_differ(new, reference, message):
    with pytest.raises(ValueError, match=f"{message}.*mend it"):
        agree(new, reference)


@pytest.mark.parametrize(
    "reference",
    [
        lambda x: jnp.where(x > 0, -1e30, x),
        lambda x: jnp.where(x > 0, -jnp.inf, jnp.log(x)),
        lambda x: jax.nn.softmax(50 * x),
        lambda x: {"noise": x - 1 + 1e-3, "number": 3.0, "key": jax.random.key(3)},
    ],
    ids=["mask", "no numbers", "softmax", "tree"],
)
def test_rounding_is_no_difference(reference):
    def rounded(leaf):
        floats = isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jnp.floating)
        return leaf * np.float32(1 + 1e-6) if floats else leaf

    agree(lambda x: jax.tree.map(rounded, reference(x)), reference)
    agree(lambda x: reference(x * np.float32(1 + 1e-7)), reference)
