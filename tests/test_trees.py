"""Paths name the same weight in every framework's tree."""

import jax
import jax.numpy as jnp
import optax
import pytest
from flax import linen, nnx
from flax.core import freeze

from jaxsparse.trees import leaves_by_path, near_misses, replace_by_path

PATHS = {"dense/kernel", "dense/bias"}
PLAIN = {"dense": {"kernel": jnp.ones((2, 3)), "bias": jnp.zeros(3)}}


class Linen(linen.Module):
    @linen.compact
    def __call__(self, x):
        boxed = linen.with_partitioning(linen.initializers.ones, ("in", None))
        return linen.Dense(3, name="dense", kernel_init=boxed)(x)


class Nnx(nnx.Module):
    def __init__(self, rngs):
        self.dense = nnx.Linear(2, 3, rngs=rngs)


def trees():
    linen_params = Linen().init(jax.random.key(0), jnp.ones((1, 2)))["params"]
    state = nnx.state(Nnx(nnx.Rngs(0)), nnx.Param)
    return {
        "dict": PLAIN,
        "frozen": freeze(PLAIN),
        "linen boxed": linen_params,
        "linen": linen.meta.unbox(linen_params),
        "nnx": state,
        "nnx dict": nnx.to_pure_dict(state),
    }


@pytest.mark.parametrize("name", ["dict", "frozen", "linen boxed", "linen", "nnx", "nnx dict"])
def test_same_paths_in_every_tree(name):
    tree = trees()[name]
    leaves = leaves_by_path(tree)
    assert set(leaves) == PATHS
    assert leaves["dense/kernel"].shape == (2, 3)
    new = replace_by_path(tree, {"dense/kernel": jnp.full((2, 3), 7.0)})
    assert jax.tree.structure(new) == jax.tree.structure(tree)
    assert float(leaves_by_path(new)["dense/kernel"].sum()) == 42
    assert leaves_by_path(new)["dense/bias"] is leaves["dense/bias"]
    assert float(leaves["dense/kernel"].sum()) != 42  # the tree given is as it was


def test_order_sequences_and_nodes_without_leaves():
    tree = {
        "b": [jnp.ones(1), (jnp.ones(2), None)],
        "a": optax.MaskedNode(),
        "c": {10: jnp.ones(3)},
    }
    assert [(p, x.size) for p, x in leaves_by_path(tree).items()] == [
        ("b/0", 1),
        ("b/1/0", 2),
        ("c/10", 3),
    ]
    assert leaves_by_path({}) == {}


def test_fields_of_a_namedtuple_and_a_bare_array():
    state = optax.ScaleByAdamState(jnp.int32(0), {"w": jnp.ones(1)}, {"w": jnp.ones(2)})
    assert list(leaves_by_path(state)) == ["count", "mu/w", "nu/w"]
    assert list(leaves_by_path(jnp.ones(2))) == [""]


def test_two_leaves_of_one_path():
    with pytest.raises(ValueError, match="share the path 'a/b'"):
        leaves_by_path({"a/b": jnp.ones(1), "a": {"b": jnp.ones(1)}})


def test_replacing_an_unknown_leaf_lists_near_misses():
    with pytest.raises(KeyError, match=r"dense/kernle.*did you mean 'dense/kernel'"):
        replace_by_path(PLAIN, {"dense/kernle": 0})


def test_replacement_may_be_none():
    assert replace_by_path(PLAIN, {"dense/bias": None})["dense"]["bias"] is None


def test_near_misses():
    assert near_misses("kernl", ["kernel", "bias"]) == "did you mean 'kernel'?"
    assert near_misses("zzz", ["b", "a"]) == "known: 'a', 'b'"
    assert near_misses("zzz", []) == "there is none"
    assert near_misses("zzz", map(str, range(9))).endswith("'4', ...")


def test_shapes_and_tracers_have_paths_too():
    shapes = jax.eval_shape(lambda: PLAIN)
    assert set(leaves_by_path(shapes)) == PATHS
    double = jax.jit(lambda t: {p: 2 * x for p, x in leaves_by_path(t).items()})
    assert float(double(PLAIN)["dense/kernel"].sum()) == 12
