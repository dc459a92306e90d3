"""Rows and columns of packed weights, and embeddings that stay packed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

import jaxsparse as js
from jaxsparse.packed.base import Packed
from tests.packed_cases import STORAGES, draw

IDS = jnp.array([[0, 69], [13, 64]])


@pytest.mark.parametrize("storage", STORAGES, ids=lambda s: s.name)
def test_rows_and_columns_are_those_of_the_dense_one(storage):
    # A bitmap has strips of 256 rows and chunks of 64 columns.
    dtype = "int8" if storage.name in ("csc", "bitmap", "block3x5", "3of8") else "float32"
    packed, dense = draw(storage, 300, 70, 0.5, dtype=dtype)
    rows = jnp.array([[0, 299], [13, 256]])
    np.testing.assert_array_equal(jax.jit(Packed.take_outputs)(packed, IDS), dense.T[IDS])
    np.testing.assert_array_equal(jax.jit(Packed.take_inputs)(packed, rows), dense[rows])


V, D = 64, 16
TABLE = jax.random.normal(jax.random.key(0), (V, D))
SIDES = {"as it comes": {}, "as a head": {"in_axis": 1, "out_axis": 0}}


def packed_table(axes, pattern=None):
    rules = [js.Rule("embedding", pattern or js.Unstructured(), 0.5, **axes)]
    params = {"embedding": TABLE}
    masks = js.compute_masks(params, rules)
    return js.mask_params(params, masks), js.pack_params(params, masks, rules)


def at(mode, **options):
    return lambda p, ids: p["embedding"].at[ids].get(mode=mode, **options)


ids = jnp.array([[3, 0], [V - 1, 7]])
LOOKUPS = {
    "index": (lambda p, ids: p["embedding"][ids], ids),
    "take": (lambda p, ids: jnp.take(p["embedding"], ids, axis=0), ids),
    "beyond, filled": (at("fill"), jnp.array([2, V, -V - 1])),
    "beyond, filled with 7": (at("fill", fill_value=7.0), jnp.array([2, V, 5])),
    "beyond, clipped": (at("clip"), jnp.array([2, V + 3])),
    "promised": (at("promise_in_bounds"), ids),
    "negative": (lambda p, ids: p["embedding"][-ids], ids),
    "one": (lambda p, i: p["embedding"][i], jnp.int32(5)),
    "one, known": (lambda p, i: p["embedding"][5], jnp.int32(5)),
    "cast and scaled": (lambda p, ids: 4 * p["embedding"].astype(jnp.bfloat16)[ids], ids),
    "column": (lambda p, ids: p["embedding"].T[:, ids], ids),
    "mapped": (lambda p, ids: jax.vmap(jax.vmap(lambda i: p["embedding"][i]))(ids), ids),
    "one hot": (lambda p, ids: jax.nn.one_hot(ids, V) @ p["embedding"], ids),
    "in a loop": (lambda p, ids: lax.map(lambda i: p["embedding"][i], ids), ids),
    "tied": (lambda p, ids: p["embedding"][ids] @ p["embedding"].T, ids),
}


@pytest.mark.parametrize(
    "name,side",
    [(name, "as it comes") for name in LOOKUPS]
    + [(name, "as a head") for name in ("index", "column", "beyond, filled", "mapped", "tied")],
)
def test_a_lookup_makes_no_table(name, side):
    lookup, ids = LOOKUPS[name]
    dense, packed = packed_table(SIDES[side])
    run = js.sparsify(lookup, on_dense="error")
    expected, actual = jax.jit(lookup)(dense, ids), jax.jit(run)(packed, ids)
    assert actual.dtype == expected.dtype
    np.testing.assert_allclose(
        actual.astype(jnp.float32), expected.astype(jnp.float32), rtol=1e-5, atol=1e-5
    )
    made = [v.aval.size for e in jax.make_jaxpr(run)(packed, ids).eqns for v in e.outvars]
    assert max(made) < V * D


@pytest.mark.slow
@pytest.mark.parametrize("side", SIDES)
def test_gradients_of_a_lookup(side):
    dense, packed = packed_table(SIDES[side])
    values, structure = js.split_packed(packed)
    run = js.sparsify(lambda p: jnp.sum(jnp.sin(p["embedding"][ids])), on_dense="error")
    found = jax.grad(lambda v: run(js.merge_packed(v, structure)))(values)
    wanted = jax.grad(lambda p: jnp.sum(jnp.sin(p["embedding"][ids])))(dense)["embedding"]
    kept = dense["embedding"] != 0
    np.testing.assert_allclose(
        js.unpack_params(js.merge_packed(found, structure))["embedding"], wanted * kept, atol=1e-6
    )


@pytest.mark.slow
@pytest.mark.parametrize("pattern", [js.Block(4, 16), js.NM(2, 4)], ids=str)
def test_axes_from_the_trace_keep_a_tied_embedding_packed(pattern):
    model = nnx.Embed(V, D, rngs=nnx.Rngs(0))
    graph, state = nnx.split(model, nnx.Param)

    def tied(state, ids):
        embed = nnx.merge(graph, state)
        return embed.attend(embed(ids))

    rules = [js.Rule("embedding", pattern, None if isinstance(pattern, js.NM) else 0.5)]
    with pytest.raises(ValueError, match="rows that are looked up"):
        js.compute_masks(state, rules)
    rules = js.read_axes(rules, tied, state, ids)
    masks = js.compute_masks(state, rules)
    packed = js.pack_params(state, masks, rules)
    expected = tied(js.mask_params(state, masks), ids)
    np.testing.assert_allclose(
        js.sparsify(tied, on_dense="error")(packed, ids), expected, rtol=1e-4, atol=1e-5
    )
