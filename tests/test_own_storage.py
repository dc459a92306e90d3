"""A pattern and a storage of a user's own go where those of the library go."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsparse as js
from jaxsparse.packed.base import Packed
from jaxsparse.packed.storages import register
from tests.own_storage import Diagonals, DiagonalSparse

WEIGHTS = {"up": {"kernel": jax.random.normal(jax.random.key(0), (16, 32)), "bias": jnp.ones(32)}}
X = jax.random.normal(jax.random.key(1), (4, 16))


class SingleWeights(Diagonals):
    """Diagonals that are stored as a pattern without a storage of its own is."""

    storage = js.Pattern.storage


def model(params, x):
    return x @ params["up"]["kernel"] + params["up"]["bias"]


@pytest.mark.parametrize(
    ("pattern", "kind"), [(Diagonals(), DiagonalSparse), (SingleWeights(), js.Bitmap)], ids=str
)
def test_from_rules_to_an_exported_program(pattern, kind):
    rules = [js.Rule(".*/kernel", pattern, sparsity=0.75)]
    masks = js.compute_masks(WEIGHTS, rules)
    packed = js.pack_params(WEIGHTS, masks, rules)
    kernel = packed["up"]["kernel"]
    assert type(kernel) is kind
    [row] = [leaf for leaf in js.report(WEIGHTS, masks, rules=rules).leaves if leaf.target]
    assert row.pattern == f"{type(pattern).__name__}() on (16, 32)"
    assert (row.sparsity, row.stored_bytes) == (0.75, kernel.nbytes)
    run = jax.jit(js.sparsify(model, on_dense="error"))
    expected = model(js.mask_params(WEIGHTS, masks), X)
    np.testing.assert_allclose(run(packed, X), expected, rtol=1e-5, atol=1e-5)
    exported = jax.export.deserialize(jax.export.export(run)(packed, X).serialize())
    np.testing.assert_allclose(exported.call(packed, X), expected, rtol=1e-5, atol=1e-5)


def test_what_it_cannot_do_is_said_by_name():
    packed = js.pack(jnp.eye(4), Diagonals())
    with pytest.raises(ValueError, match=r"numbers \[3 1\] are not those of diagonals"):
        DiagonalSparse(jnp.ones((2, 4)), jnp.array([3, 1]), (4, 4))
    with pytest.raises(ValueError, match=r"'cpu' cannot compute .* DiagonalLayout"):
        js.sparse_dot(jnp.ones(4), packed, implementation="cpu")
    with pytest.raises(TypeError, match=r"Diagonals\(\) .* layer can start with"):
        js.nn.random_structure(jax.random.key(0), (4, 4), Diagonals(), 0.5)
    with pytest.raises(ValueError, match=r"names 'w', which is packed, DiagonalSparse"):
        js.compute_masks({"w": packed}, [js.Rule("w", Diagonals(), 0.5)])


def test_a_field_that_cannot_be_saved_is_refused_when_the_class_is_registered():
    @dataclasses.dataclass(frozen=True)
    class Named(Packed):
        values: jax.Array
        view: tuple
        name: str
        index_arrays = {}  # noqa: RUF012

    with pytest.raises(TypeError, match="field 'name' of Named is <class 'str'>; int and"):
        register(Named)
