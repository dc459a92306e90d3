"""A channel that is one number whatever the input goes, if a bias can take over what it adds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from graph_models import numbers, randomize
from test_channels import assert_same

import jaxsparse as js

IMAGE_NUMBERS = ("NHWC", "HWIO", "NHWC")
DEAD = 3  # of 8 channels
ZEROS = np.zeros((6, 4, 4, 2), np.float32)


def conv(x, kernel, padding="VALID", groups=1, **options):
    return jax.lax.conv_general_dilated(
        *(x, kernel, options.pop("strides", (1, 1)), padding),
        dimension_numbers=IMAGE_NUMBERS,
        feature_group_count=groups,
        **options,
    )


def pooled(x, reducer, start, padding="VALID", size=2):
    return jax.lax.reduce_window(x, start, reducer, (1, size, size, 1), (1, 1, 1, 1), padding)


def layer_norm(x):
    centred = x - x.mean(-1, keepdims=True)
    return centred * jax.lax.rsqrt((centred**2).mean(-1, keepdims=True) + 0.1)


# By name what stands between relu(x @ up + bias), of 8 channels of which 3 are constant, and
# the end; the shapes of its weights; how many channels stay; and a word of the reason.
CASES = {
    "dense": (lambda p, x: x @ p["w"] + p["b"], {"w": (8, 2), "b": (2,)}, 5, ""),
    "one output": (lambda p, x: x @ p["w"] + p["b"], {"w": (8, 1), "b": (1,)}, 5, ""),
    "bias first": (lambda p, x: p["b"] - x @ p["w"], {"w": (8, 2), "b": (2,)}, 5, ""),
    "minus": (lambda p, x: x @ p["w"] - p["b"], {"w": (8, 2), "b": (2,)}, 5, ""),
    "no bias": (lambda p, x: x @ p["w"], {"w": (8, 2)}, 8, "its result is an output"),
    "no bias but tanh": (lambda p, x: jnp.tanh(x @ p["w"]), {"w": (8, 2)}, 8, "goes into tanh"),
    "scalar bias": (
        *(lambda p, x: x @ p["w"] + p["b"], {"w": (8, 2), "b": ()}),
        *(8, "b is one number for all channels"),
    ),
    "bias used twice": (
        *(lambda p, x: (x @ p["w"] + p["b"]) * p["b"], {"w": (8, 2), "b": (2,)}),
        *(8, "b is added to something else"),
    ),
    "product used twice": (
        *(lambda p, x: (y := x @ p["w"], jnp.sin(y) + y + p["b"])[1], {"w": (8, 2), "b": (2,)}),
        *(8, "no bias can take over"),
    ),
    "scaled bias": (
        *(lambda p, x: x @ p["w"] + 2 * p["b"], {"w": (8, 2), "b": (2,)}),
        *(8, "goes into add"),
    ),
    "turned round": (
        *(lambda p, x: jnp.einsum("oi,bhwi->bohw", p["w"], x) + p["b"][:, None, None],),
        *({"w": (2, 8), "b": (2,)}, 5, ""),
    ),
    "one example at a time": (
        lambda p, x: jax.vmap(lambda x: p["w"] @ x.mean((0, 1)) + p["b"])(x),
        *({"w": (2, 8), "b": (2,)}, 5, ""),
    ),
    "positions have a bias each": (
        *(lambda p, x: x @ p["w"] + p["b"], {"w": (8, 2), "b": (4, 4, 2)}, 5, ""),
    ),
    "half precision": (
        lambda p, x: (x.astype(jnp.bfloat16) @ p["w"].astype(jnp.bfloat16)).astype(jnp.float32)
        + p["b"],
        *({"w": (8, 2), "b": (2,)}, 5, ""),
    ),
    "a product of two weights": (
        lambda p, x: x @ (p["w"] + p["a"] @ p["c"]) + p["b"],
        *({"w": (8, 2), "a": (8, 2), "c": (2, 2), "b": (2,)}, 5, ""),
    ),
    "valid convolution": (
        *(lambda p, x: conv(x, p["w"]) + p["b"], {"w": (3, 3, 8, 2), "b": (2,)}, 5, ""),
    ),
    "strided and dilated": (
        lambda p, x: conv(x, p["w"], strides=(2, 1), rhs_dilation=(1, 2)) + p["b"],
        *({"w": (3, 2, 8, 2), "b": (2,)}, 5, ""),
    ),
    "same convolution": (
        *(lambda p, x: conv(x, p["w"], "SAME") + p["b"], {"w": (3, 3, 8, 2), "b": (2,)}),
        *(8, "at the borders"),
    ),
    "same 1x1 convolution": (
        *(lambda p, x: conv(x, p["w"], "SAME") + p["b"], {"w": (1, 1, 8, 2), "b": (2,)}, 5, ""),
    ),
    "transposed convolution": (
        lambda p, x: conv(x, p["w"], [(2, 2), (2, 2)], lhs_dilation=(2, 2)) + p["b"],
        *({"w": (3, 3, 8, 2), "b": (2,)}, 8, "at the borders"),
    ),
    "depthwise": (
        lambda p, x: jax.nn.relu(conv(x, p["d"], groups=8) + p["c"]) @ p["w"] + p["b"],
        *({"d": (3, 3, 1, 8), "c": (8,), "w": (8, 2), "b": (2,)}, 5, ""),
    ),
    "depthwise with a border": (
        lambda p, x: jax.nn.relu(conv(x, p["d"], "SAME", groups=8) + p["c"]) @ p["w"] + p["b"],
        *({"d": (3, 3, 1, 8), "c": (8,), "w": (8, 2), "b": (2,)}, 8, "w reads them"),
    ),
    "batch norm": (
        lambda p, x: jax.nn.relu((conv(x, p["w"]) - p["m"]) / p["s"] + p["c"]) @ p["v"],
        *({"w": (3, 3, 8, 4), "m": (4,), "s": (4,), "c": (4,), "v": (4, 2)}, 5, ""),
    ),
    "mean pooling": (
        lambda p, x: pooled(x, jax.lax.add, 0.0) @ p["w"] / 4 + p["b"],
        *({"w": (8, 2), "b": (2,)}, 8, "goes into div"),
    ),
    "pooling, then a layer": (
        lambda p, x: (pooled(x, jax.lax.add, 0.0) / 4) @ p["w"] + p["b"],
        *({"w": (8, 2), "b": (2,)}, 5, ""),
    ),
    "pooling over the border": (
        lambda p, x: pooled(x, jax.lax.add, 0.0, "SAME") @ p["w"] + p["b"],
        *({"w": (8, 2), "b": (2,)}, 8, "w reads them"),
    ),
    "largest over the border": (
        lambda p, x: pooled(x, jax.lax.max, -jnp.inf, "SAME") @ p["w"] + p["b"],
        *({"w": (8, 2), "b": (2,)}, 5, ""),
    ),
    "mean over space": (
        *(lambda p, x: x.mean((1, 2)) @ p["w"] + p["b"], {"w": (8, 2), "b": (2,)}, 5, ""),
    ),
    "residual": (
        lambda p, x: (x + jnp.tanh(x @ p["a"])) @ p["w"] + p["b"],
        *({"a": (8, 8), "w": (8, 2), "b": (2,)}, 8, "w reads them"),
    ),
    "softmax over channels": (
        lambda p, x: jax.nn.softmax(x) @ p["w"] + p["b"],
        *({"w": (8, 2), "b": (2,)}, 8, "reduce_max"),
    ),
    "layer norm": (
        lambda p, x: layer_norm(x) @ p["w"] + p["b"],
        *({"w": (8, 2), "b": (2,)}, 8, "reduce_sum"),
    ),
    "concatenated": (
        lambda p, x: jnp.concatenate([x, jnp.cos(x)], -1) @ p["w"] + p["b"],
        *({"w": (16, 2), "b": (2,)}, 5, ""),
    ),
    "two axes at once": (
        lambda p, x: jnp.einsum("bxyhd,hdo->bxyo", x.reshape(*x.shape[:-1], 8, 1), p["w"])
        + p["b"],
        *({"w": (8, 1, 2), "b": (2,)}, 5, ""),
    ),
    "two readers": (
        lambda p, x: (x @ p["w"] + p["b"]) * jnp.tanh(x @ p["v"] + p["c"]),
        *({"w": (8, 2), "b": (2,), "v": (8, 2), "c": (2,)}, 5, ""),
    ),
    "two readers, one without a bias": (
        lambda p, x: (x @ p["w"] + p["b"]) * jnp.tanh(x @ p["v"]),
        *({"w": (8, 2), "b": (2,), "v": (8, 2)}, 8, "goes into tanh"),
    ),
    "in a loop": (
        lambda p, x: jax.lax.fori_loop(0, 3, lambda _, c: c * 0.5 + x @ p["w"] + p["b"], ZEROS),
        *({"w": (8, 2), "b": (2,)}, 8, "w reads them"),
    ),
    "in a branch": (
        lambda p, x: jax.lax.cond(x.sum() > 0, lambda: x @ p["w"] + p["b"], lambda: x @ p["w"]),
        *({"w": (8, 2), "b": (2,)}, 8, ""),
    ),
    "over examples": (
        lambda p, x: jnp.einsum("bhwi,bo->bhwo", x, jnp.ones((6, 1)) * p["w"]) + p["b"],
        *({"w": (1, 2), "b": (2,)}, 8, ""),
    ),
}  # fmt: skip


def model(name, dtype=jnp.float32):
    rest, shapes, left, word = CASES[name]

    def fn(params, x):
        return rest(params, jax.nn.relu(x @ params["up"] + params["bias"]))

    shapes = {"up": (3, 8), "bias": (8,)} | shapes
    params = randomize({path: jnp.zeros(shape, dtype) for path, shape in shapes.items()})
    return fn, params | {"bias": jnp.abs(params["bias"]) + 0.2}, left, word


MASKS = {"up": jnp.broadcast_to(jnp.arange(8) >= DEAD, (3, 8))}
X = numbers(6, 4, 4, 3)


FAST = {"dense", "no bias", "same convolution", "layer norm", "two readers"}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n in FAST else pytest.mark.slow) for n in CASES]
)
def test_constants(name):
    fn, params, left, word = model(name)
    small, run, report = js.graph.shrink(fn, params, MASKS, X)
    assert small["up"].shape == (3, left), str(report)
    masked = fn(js.mask_params(params, MASKS), X)
    assert_same(run(small, X), masked, 1e-2 if "half" in name else 1e-5)
    (row,) = (row for row in report.groups if any(p.path == "up" for p in row.group.places))
    assert not len(row.inexact)
    if left == 8:
        assert row.stays and word in str(row.stays[0])
        assert [stay.channels.tolist() for stay in row.stays] == [[0, 1, 2]]
    else:
        assert not row.stays and row.folded
        assert all({*channels} <= {0, 1, 2} for channels in row.folded.values())


def test_what_takes_over_is_no_longer_masked():
    fn, params, _, _ = model("dense")
    masks = MASKS | {"b": jnp.array([False, True])}
    small, run, report = js.graph.shrink(fn, params, masks, X)
    assert report.masks["b"].tolist() == [True, True] and small["b"][0] != 0
    assert_same(run(js.mask_params(small, report.masks), X), fn(js.mask_params(params, masks), X))
    assert list(report.groups[0].folded) == ["b"]
    assert "3 removed were constant: b took that over" in str(report)


def test_nothing_is_taken_over_where_the_last_channel_stays():
    fn, params, _, _ = model("dense")
    masks = {"up": jnp.zeros((3, 8), bool)}
    small, run, report = js.graph.shrink(fn, params, masks, X)
    assert small["up"].shape == (3, 1)
    assert_same(run(small, X), fn(js.mask_params(params, masks), X))
    assert report.groups[0].stays[0].reasons == ("one channel of a group always stays",)


@pytest.mark.slow
def test_a_chain_of_constants():
    """The second layer hears constants only, in one of its neurons."""

    def fn(p, x):
        x = jnp.tanh(x @ p["a"] + p["b"])
        return jnp.tanh(x @ p["c"] + p["d"]) @ p["e"] + p["f"]

    shapes = {"a": (3, 4), "b": (4,), "c": (4, 4), "d": (4,), "e": (4, 2), "f": (2,)}
    params = randomize({path: jnp.ones(shape) for path, shape in shapes.items()})
    masks = {
        "a": jnp.ones((3, 4), bool).at[:, 0].set(False),
        "c": jnp.ones((4, 4), bool).at[1:, 0].set(False),
    }
    small, run, report = js.graph.shrink(fn, params, masks, X)
    assert small["c"].shape == (3, 3)
    assert [list(row.folded) for row in report.groups] == [["d"], ["f"]]
    assert_same(run(small, X), fn(js.mask_params(params, masks), X))


@pytest.mark.slow
def test_what_was_taken_over_is_not_lost_under_intersection():
    fn, params, _, _ = model("two readers, one without a bias")
    small, run, report = js.graph.shrink(fn, params, MASKS, X, resolve="intersection")
    (row,) = report.groups
    assert row.inexact.tolist() == [0, 1, 2] and list(row.folded) == ["b"]
    fn, params, _, _ = model("dense")
    small, run, report = js.graph.shrink(fn, params, MASKS, X, resolve="intersection")
    assert not len(report.groups[0].inexact)
    assert_same(run(small, X), fn(js.mask_params(params, MASKS), X))


@pytest.mark.slow
def test_in_float64():
    with jax.enable_x64(True):
        fn, params, _, _ = model("batch norm", jnp.float64)
        x = jnp.asarray(np.random.default_rng(0).normal(size=(6, 4, 4, 3)))
        small, run, _ = js.graph.shrink(fn, params, MASKS, x)
        assert small["up"].shape == (3, 5)
        assert_same(run(small, x), fn(js.mask_params(params, MASKS), x), 1e-12)


def test_cures_are_cures():
    """Following what the report advises lets the channels go."""
    fn, params, _, _ = model("no bias")
    report = js.graph.shrink(fn, params, MASKS, X)[2]
    (stay,) = report.groups[0].stays
    assert stay.holders == ("bias", "w") and stay.cures == (("w",), ("bias",))
    assert "would go if masked in w or in bias, too" in str(report)
    for (path,) in stay.cures:
        shape = params[path].shape
        dead = jnp.arange(8).reshape([-1] + [1] * (len(shape) - 1)) < DEAD
        masks = MASKS | {path: jnp.broadcast_to(~dead, shape)}
        small, run, _ = js.graph.shrink(fn, params, masks, X)
        assert small["up"].shape == (3, 5)
        assert_same(run(small, X), fn(js.mask_params(params, masks), X))


def test_masks_of_what_is_pinned():
    fn, params, _, _ = model("dense")
    masks = {"w": jnp.broadcast_to(jnp.arange(2) < 1, (8, 2))}
    report = js.graph.shrink(fn, params, masks, X)[2]
    assert not report.groups
    (row,) = report.pinned
    assert row.channels.tolist() == [1] and row.pinned.cause.primitive == "output"
    assert "1 masked channels stay; pinned: 2 channels in b[0], w[1]: is an output" in str(report)
