"""The training state and packed weights go through `flax.serialization`."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import serialization
from flax.training.train_state import TrainState

import jaxsparse as js
from tests.packed_cases import BY_NAME, STORAGES, draw

CASES = [(storage.name, "float32") for storage in STORAGES]
CASES += [("bitmap", "bfloat16"), ("2of4", "int8")]


@pytest.mark.parametrize(("name", "dtype"), CASES)
def test_packed_weights_come_back(name, dtype):
    packed, _ = draw(BY_NAME[name], 20, 24, 0.5, dtype=dtype)
    target = {"up": [jax.tree.map(jnp.zeros_like, packed)]}
    found = serialization.from_bytes(target, serialization.to_bytes({"up": [packed]}))["up"][0]
    assert jax.tree.structure(found) == jax.tree.structure(packed)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(packed), strict=True):
        assert isinstance(a, jax.Array) and a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


def test_another_number_of_weights_comes_back_with_its_places():
    packed, dense = draw(BY_NAME["csc"], 20, 24, 0.8)
    target, _ = draw(BY_NAME["csc"], 20, 24, 0.3)
    assert packed.values.shape != target.values.shape
    found = serialization.from_state_dict(target, serialization.to_state_dict(packed))
    np.testing.assert_array_equal(found.todense(), dense)


def test_a_structure_is_refused():
    packed, _ = draw(BY_NAME["csc"], 20, 24, 0.8)
    with pytest.raises(ValueError, match="structure without values; with_values completes it"):
        serialization.to_bytes({"up": packed.structure})


def state_of(packed, **arrays):
    state = serialization.to_state_dict(packed)
    return state | {"arrays": state["arrays"] | arrays}


def test_what_does_not_fit_the_target_is_refused():
    packed, _ = draw(BY_NAME["block4x16"], 16, 32, 1)
    wide, _ = draw(BY_NAME["block4x16"], 16, 48, 1)
    other, _ = draw(BY_NAME["block1x16"], 16, 32, 1)
    csc, _ = draw(BY_NAME["csc"], 16, 32, 1)
    half = packed.with_values(packed.values.astype(jnp.bfloat16))
    for state, message in [
        (serialization.to_state_dict(wide), r"view .*\[16, 48\].* does not fit Block"),
        (serialization.to_state_dict(other), r"block \[1, 16\] does not fit .*\[4, 16\]"),
        (serialization.to_state_dict(csc), "kind CSC does not fit"),
        (serialization.to_state_dict(half), "values of bfloat16, .* of float32"),
        (state_of(packed, values=packed.values[:, :2]), r"values has shape \(8, 2, 16\)"),
        (state_of(packed, rows=packed.rows.astype(jnp.float32)), "'rows': an array of float32"),
        (state_of(packed, rows=packed.rows + 9), r"rows\[0\] = 9 is outside"),
        ({"groups": np.ones(3)}, r"state arrays and fields, not \['groups'\]"),
    ]:
        with pytest.raises(ValueError, match=message):
            serialization.from_state_dict({"up": packed}, {"up": state})


PATTERNS = [js.Block(4, 4), pytest.param(js.NM(2, 4), marks=pytest.mark.slow)]


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_the_training_state_comes_back(pattern):
    params = {"kernel": jax.random.normal(jax.random.key(0), (8, 8))}
    rules = [js.Rule("kernel", pattern, 0.5)]
    tx = js.pruned(optax.adam(1e-2), js.prune(rules, schedule=js.one_shot()))
    fresh = TrainState.create(apply_fn=None, params=params, tx=tx)
    state = fresh.apply_gradients(grads=jax.tree.map(jnp.ones_like, params))
    found = serialization.from_bytes(fresh, serialization.to_bytes(state))
    assert jax.tree.structure(found.opt_state) == jax.tree.structure(state.opt_state)
    jax.tree.map(np.testing.assert_array_equal, found, state)
    assert not js.masks(found.opt_state)["kernel"].all()
    further = found.apply_gradients(grads=params)
    jax.tree.map(np.testing.assert_array_equal, further, state.apply_gradients(grads=params))


def test_a_mask_of_another_shape_is_refused():
    def state(size):
        tx = js.prune([js.Rule("kernel", js.Block(4, 4), 0.5)], schedule=js.one_shot())
        return tx.init({"kernel": jnp.ones((size, 8))})

    stored = serialization.to_state_dict(state(8))
    with pytest.raises(ValueError, match=r"kernel: a mask of shape \(2, 2\), .*: bool \(4, 2\)"):
        serialization.from_state_dict(state(16), stored)
    stored["masks"]["kernel"] = {"groups": np.ones((2, 2))}
    with pytest.raises(ValueError, match="float64, does not fit"):
        serialization.from_state_dict(state(8), stored)
