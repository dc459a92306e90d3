"""Masks of whole units for given widths: the largest stay, and shrinking removes the others."""

import flax.linen as linen
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsparse as js
from jaxsparse.allocation import narrow, unit_masks, unit_scores


def drawn(shapes, seed=0):
    """Random numbers for every leaf; those of a variance are positive."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        found = rng.normal(size=leaf.shape)
        return jnp.asarray(found**2 if "var" in jax.tree_util.keystr(path) else found, leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, shapes)


class Mobile(linen.Module):
    """A convolution and two depthwise separable ones, with norms."""

    @linen.compact
    def __call__(self, x):
        def conv(name, features, size, groups, x):
            conv = linen.Conv(features, (size, size), feature_group_count=groups, name=name)
            return linen.relu6(linen.BatchNorm(use_running_average=True)(conv(x)))

        x = conv("stem", 6, 3, 1, x)
        x = conv("depth1", 6, 3, 6, x)
        x = conv("point1", 10, 1, 1, x)
        x = conv("depth2", 10, 3, 10, x)
        x = conv("point2", 8, 1, 1, x)
        return linen.Dense(3, name="head")(x.mean((1, 2)))


def mobile():
    x = jnp.asarray(np.random.default_rng(1).normal(size=(2, 5, 5, 3)), jnp.float32)
    params = drawn(jax.eval_shape(lambda: Mobile().init(jax.random.key(0), x)))
    return Mobile().apply, params, x


def grouped_queries(params, x):
    """Two key heads of three query heads each."""
    q = (x @ params["q"]).reshape(*x.shape[:2], 2, 3, 4)
    k, v = ((x @ params[name]).reshape(*x.shape[:2], 2, 4) for name in "kv")
    weights = jax.nn.softmax(jnp.einsum("btkhd,bskd->bkhts", q, k))
    return x + jnp.einsum("bkhts,bskd->btkhd", weights, v).reshape(*x.shape[:2], -1) @ params["o"]


def queries():
    shapes = {"q": (8, 24), "k": (8, 8), "v": (8, 8), "o": (24, 8)}
    params = drawn({name: jax.ShapeDtypeStruct(s, jnp.float32) for name, s in shapes.items()})
    return grouped_queries, params, jnp.ones((2, 5, 8)) * jnp.arange(5)[:, None]


def shrunk(fn, params, masks, x):
    """The smaller parameters, held against the masked model."""
    small, run, _ = js.graph.shrink(fn, params, masks, x)
    masked = fn(js.mask_params(params, masks), x)
    np.testing.assert_allclose(run(small, x), masked, rtol=1e-4, atol=1e-4)
    return small


def test_depthwise_convolutions_and_norms_follow():
    fn, params, x = mobile()
    structure = js.graph.structure(fn, params, x)
    names = [group.name for group in structure.groups]
    masks = narrow(structure, params, dict(zip(names, (4, 3, 8), strict=True)))
    small = shrunk(fn, params, masks, x)["params"]
    sizes = {name: small[name]["kernel"].shape for name in params["params"] if "Norm" not in name}
    assert sizes == {
        "stem": (3, 3, 3, 4),
        "depth1": (3, 3, 1, 4),
        "point1": (1, 1, 4, 3),
        "depth2": (3, 3, 1, 3),
        "point2": (1, 1, 3, 8),
        "head": (8, 3),
    }
    assert [small[f"BatchNorm_{i}"]["scale"].shape for i in range(5)] == [
        (4,),
        (4,),
        (3,),
        (3,),
        (8,),
    ]


@pytest.mark.parametrize("score", ["l2", "l1"])
def test_the_largest_over_all_writing_weights_stay(score):
    fn, params, x = mobile()
    structure = js.graph.structure(fn, params, x)
    kernels = [np.asarray(params["params"][n]["kernel"], np.float64) for n in ("point1", "depth2")]
    order = 1 if score == "l1" else 2
    rows = np.concatenate([kernel.reshape(-1, 10) for kernel in kernels])
    expected = np.linalg.norm(rows, order, axis=0)
    name = structure.groups[1].name
    np.testing.assert_allclose(unit_scores(structure, params, score)[name], expected)
    mask = narrow(structure, params, {name: 4}, score=score)["params/point2/kernel"]
    assert set(np.flatnonzero(mask.any((0, 1, 3)))) == set(np.argsort(expected)[-4:])


def test_a_key_head_goes_with_all_its_query_heads():
    fn, params, x = queries()
    structure = js.graph.structure(fn, params, x)
    (group,) = structure.groups
    params |= {"k": params["k"].at[:, :4].multiply(0.01), "q": params["q"].at[:, :12].set(0)}
    masks = narrow(structure, params, {group.name: 1})
    small = shrunk(fn, params, masks, x)
    assert {name: leaf.shape for name, leaf in small.items()} == {
        "q": (8, 12), "k": (8, 4), "v": (8, 4), "o": (12, 8)
    }  # fmt: skip
    np.testing.assert_array_equal(small["v"], params["v"][:, 4:])


def test_heads_of_a_layer_go_as_a_whole():
    class Attention(linen.Module):
        @linen.compact
        def __call__(self, x):
            return x + linen.MultiHeadDotProductAttention(num_heads=4, name="attention")(x, x)

    x = jnp.asarray(np.random.default_rng(1).normal(size=(2, 3, 8)), jnp.float32)
    params = drawn(jax.eval_shape(lambda: Attention().init(jax.random.key(0), x)))
    structure = js.graph.structure(Attention().apply, params, x)
    (group,) = structure.groups
    small = shrunk(Attention().apply, params, narrow(structure, params, {group.name: 3}), x)
    assert small["params"]["attention"]["query"]["kernel"].shape == (8, 3, 2)
    assert small["params"]["attention"]["out"]["kernel"].shape == (3, 2, 8)


def mlp(params, x):
    return jnp.tanh(x @ params["up"] + params["bias"]) @ params["down"]


MLP = {"up": jnp.array([[1.0, -2.0, 2.0, 1.0]]), "bias": jnp.ones(4), "down": jnp.ones((4, 2))}
STRUCTURE = js.graph.structure(mlp, MLP, jnp.ones((3, 1)))
NAME = "up, down"


@pytest.mark.parametrize(("width", "kept"), [(1, [1]), (2, [1, 2]), (3, [0, 1, 2]), (4, range(4))])
def test_of_equal_units_the_lower_numbers_stay(width, kept):
    masks = narrow(STRUCTURE, MLP, {NAME: width})
    assert np.flatnonzero(masks["up"][0]).tolist() == list(kept)
    assert np.flatnonzero(masks["bias"]).tolist() == list(kept)
    assert np.flatnonzero(masks["down"].all(1)).tolist() == list(kept)


def test_masks_are_of_all_leaves_with_units_whatever_the_widths():
    whole = narrow(STRUCTURE, MLP, {})
    assert set(whole) == set(MLP) and all(mask.all() for mask in whole.values())
    compiled = jax.jit(lambda masks: mlp(js.mask_params(MLP, masks), jnp.ones((3, 1))))
    for width in (1, 2, 3):
        compiled(narrow(STRUCTURE, MLP, {NAME: width}))
    compiled(whole)
    assert compiled._cache_size() == 1


def test_kept_units_may_be_traced():
    found = jax.jit(lambda kept: unit_masks(STRUCTURE, MLP, {NAME: kept}))(jnp.arange(4) < 2)
    assert found["down"].tolist() == [[True] * 2] * 2 + [[False] * 2] * 2
    assert found["bias"].tolist() == [True, True, False, False]


def test_a_score_of_your_own_has_the_group_and_the_leaves():
    def last(group, leaves):
        assert group.name == NAME and set(leaves) == set(MLP)
        return jnp.arange(group.units)

    assert narrow(STRUCTURE, MLP, {NAME: 1}, score=last)["bias"].tolist() == [False] * 3 + [True]


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.int8])
def test_norms_of_narrow_dtypes_do_not_overflow(dtype):
    largest = jnp.iinfo(dtype).min if dtype == jnp.int8 else jnp.finfo(dtype).max
    params = MLP | {"up": jnp.array([[1, 2, largest, 3]]).astype(dtype)}
    assert narrow(STRUCTURE, params, {NAME: 1})["bias"].tolist() == [False, False, True, False]


def test_units_that_lie_in_one_leaf_of_two_groups_go_from_both_axes():
    def deep(params, x):
        return jnp.tanh(jnp.tanh(x @ params["a"]) @ params["b"]) @ params["c"]

    shapes = {"a": (2, 4), "b": (4, 6), "c": (6, 1)}
    params = drawn({name: jax.ShapeDtypeStruct(s, jnp.float32) for name, s in shapes.items()})
    structure = js.graph.structure(deep, params, jnp.ones((3, 2)))
    masks = narrow(structure, params, {"a, b": 2, "b, c": 5})
    assert shrunk(deep, params, masks, jnp.ones((3, 2)))["b"].shape == (2, 5)


@pytest.mark.parametrize(
    ("widths", "error", "message"),
    [
        ({"up": 2}, ValueError, "'up' is no group of units that can go.*residual.*'up, down'"),
        ({NAME: 0}, ValueError, "keeps 0 of 4 neurons; 1 to 4 would work"),
        ({NAME: 5}, ValueError, "keeps 5 of 4 neurons"),
        ({NAME: 2.0}, TypeError, "keeps 2.0; a whole number"),
        ({NAME: True}, TypeError, "keeps True; a whole number"),
        ([2], TypeError, "list, of Structure; a number of units by name"),
    ],
)
def test_widths_that_no_group_has(widths, error, message):
    with pytest.raises(error, match=message):
        narrow(STRUCTURE, MLP, widths)


@pytest.mark.parametrize(
    ("params", "score", "error", "message"),
    [
        (MLP, "l3", ValueError, "score='l3'; 'l2', 'l1' or a function"),
        (MLP, lambda *_: jnp.ones(3), ValueError, r"shape \(3,\); \(4,\)"),
        (MLP, lambda *_: jnp.full(4, jnp.nan), ValueError, "4 of 4 scores .* NaN or infinite"),
        (MLP | {"up": MLP["up"].at[0, 1].set(jnp.nan)}, "l2", ValueError, r"1 of 4 .* up\[1\]"),
        ({"up": MLP["up"]}, "l2", KeyError, "no such leaf"),
        (jax.eval_shape(lambda: MLP), "l2", TypeError, "a shape"),
        (MLP | {"up": jnp.ones((1, 5))}, "l2", ValueError, r"shape \(1, 5\).* 4 positions"),
    ],
)
def test_scores_and_parameters_that_do_not_fit(params, score, error, message):
    with pytest.raises(error, match=message):
        narrow(STRUCTURE, params, {NAME: 2}, score=score)


def test_complex_scores_have_no_order():
    params = {"up": jnp.ones((2, 4)), "down": jnp.ones((4, 3))}
    model = lambda params, x: jnp.tanh(x @ params["up"]) @ params["down"]  # noqa: E731
    structure = js.graph.structure(model, params, jnp.ones((5, 2)))
    with pytest.raises(TypeError, match="score of 'up, down' is of complex64, which has no order"):
        js.allocation.narrow(structure, params, {}, score=lambda group, _: jnp.ones(4) * 1j)
