"""What masks leave empty goes, and the smaller model computes what the masked one did."""

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from graph_models import MODELS, numbers, randomize
from test_channels import assert_same

import jaxsparse as js
from jaxsparse.trees import leaves_by_path


def emptying(channels, groups, share=0.5, seed=0):
    """Masks that leave a share of the channels of groups empty, wherever they are."""
    rng = np.random.default_rng(seed)
    masks = {path: np.ones(shape, bool) for path, shape in channels.shapes.items()}
    for group in groups:
        dead = rng.permutation(group.size)[: int(share * group.size)]
        for path in dict.fromkeys(place.path for place in group.places):
            empty_in(masks[path], channels, path, group.id, dead)
    return masks


def empty_in(mask, channels, path, group, dead):
    for axis, pieces in enumerate(channels.axes[path]):
        for piece in pieces:
            for i, factor in enumerate(piece.factors):
                if factor.group == group:
                    chosen = [np.arange(f.size) for f in piece.factors]
                    chosen[i] = dead
                    np.moveaxis(mask, axis, 0)[piece.at(chosen).ravel()] = False


def shrink_half(name, **kwargs):
    model = MODELS[name]()
    channels = js.graph.channels(model.fn, model.params, *model.inputs)
    masks = emptying(channels, channels.groups)
    results = js.graph.shrink(model.fn, model.params, masks, *model.inputs, **kwargs)
    return model, channels, js.mask_params(model.params, masks), *results


# A router's softmax runs over its experts: an empty one still takes its share.
WHOLE = {"experts": [3]}


@pytest.mark.parametrize("name", MODELS)
def test_the_smaller_model_computes_what_the_masked_one_does(name):
    model, channels, masked, small, fn, report = shrink_half(name)
    sizes = [group.size for group in channels.groups]
    whole = WHOLE.get(name, [])
    halved = sorted((size, size if size in whole else size - size // 2) for size in sizes)
    assert sorted((g.group.size, len(g.kept)) for g in report.groups) == halved
    assert jax.tree.structure(small) == jax.tree.structure(model.params)
    assert sum(leaf.size for leaf in jax.tree.leaves(small)) == report.after
    assert_same(jax.jit(fn)(small, *model.inputs), jax.jit(model.fn)(masked, *model.inputs))


def two_layers(activation, bias):
    """A network of four neurons whose first one is in question."""

    def fn(p, x):
        return activation(x @ p["up"] + p["bias"]) @ p["down"]

    params = randomize({"up": jnp.ones((3, 4)), "bias": jnp.ones(4), "down": jnp.ones((4, 2))})
    return fn, params | {"bias": jnp.full(4, bias)}


def first_empty(*names):
    """Masks without neuron 0, by leaf."""
    masks = {
        "up": jnp.ones((3, 4), bool).at[:, 0].set(False),
        "bias": jnp.ones(4, bool).at[0].set(False),
        "down": jnp.ones((4, 2), bool).at[0].set(False),
    }
    return {name: masks[name] for name in names}


@pytest.mark.parametrize(
    ("empty", "activation", "bias", "left"),
    [
        (("down",), jnp.tanh, 0.3, 3),  # nobody listens
        (("up", "bias", "down"), jnp.tanh, 0.3, 3),
        (("up", "bias"), jnp.tanh, 0.3, 3),  # tanh(0) = 0
        (("up", "bias"), jax.nn.gelu, 0.3, 3),
        (("up", "bias"), jax.nn.silu, 0.3, 3),
        (("up", "bias"), jax.nn.sigmoid, 0.3, 4),  # it says 0.5
        (("up",), jnp.tanh, 0.3, 4),  # its bias goes on
        (("up",), jnp.tanh, 0.0, 3),
        (("bias",), jnp.tanh, 0.3, 4),
    ],
)
def test_union_removes_what_adds_nothing(empty, activation, bias, left):
    fn, params = two_layers(activation, bias)
    x, masks = numbers(5, 3), first_empty(*empty)
    small, run, report = js.graph.shrink(fn, params, masks, x)
    assert small["up"].shape == (3, left)
    assert all(len(group.inexact) == 0 for group in report.groups)
    assert_same(run(small, x), fn(js.mask_params(params, masks), x))


@pytest.mark.parametrize(
    ("empty", "inexact"), [(("up",), [0]), (("down",), []), (("bias",), [0]), (("up", "bias"), [])]
)
def test_intersection_removes_what_one_leaf_leaves_empty(empty, inexact):
    fn, params = two_layers(jnp.tanh, 0.3)
    masks = first_empty(*empty)
    small, run, report = js.graph.shrink(fn, params, masks, numbers(5, 3), resolve="intersection")
    assert small["up"].shape == (3, 3)
    assert report.groups[0].inexact.tolist() == inexact
    rest = {name: leaf for name, leaf in js.mask_params(params, masks).items()}
    rest["down"] = rest["down"].at[0].set(0.0)  # what is left is exactly the rest
    assert_same(run(small, numbers(5, 3)), fn(rest, numbers(5, 3)))
    assert ("removed did add something" in str(report)) == bool(inexact)


def test_zeros_that_no_mask_made_stay():
    """A zero-initialised last layer must not cost the layers before it."""
    fn, params = two_layers(jnp.tanh, 0.3)
    params |= {"down": jnp.zeros((4, 2))}
    masks = {"up": jnp.ones((3, 4), bool)}
    small, _, report = js.graph.shrink(fn, params, masks, numbers(5, 3))
    assert small["up"].shape == (3, 4) and not report.groups


def test_the_last_channel_stays():
    fn, params = two_layers(jnp.tanh, 0.3)
    masks = {"up": jnp.zeros((3, 4), bool), "down": jnp.zeros((4, 2), bool)}
    for resolve in ("union", "intersection"):
        small, run, _ = js.graph.shrink(fn, params, masks, numbers(5, 3), resolve=resolve)
        assert small["up"].shape == (3, 1)
        np.testing.assert_array_equal(run(small, numbers(5, 3)), np.zeros((5, 2)))


def test_one_removal_empties_the_next():
    """Neuron 0 hears only neuron 0 of the layer before, which nothing feeds."""

    def fn(p, x):
        return jnp.tanh(jnp.tanh(x @ p["a"]) @ p["b"]) @ p["c"]

    params = randomize({"a": jnp.ones((3, 4)), "b": jnp.ones((4, 4)), "c": jnp.ones((4, 2))})
    masks = {
        "a": jnp.ones((3, 4), bool).at[:, 0].set(False),
        "b": jnp.ones((4, 4), bool).at[1:, 0].set(False),
    }
    small, run, _ = js.graph.shrink(fn, params, masks, numbers(5, 3))
    assert small["b"].shape == (3, 3)
    assert_same(run(small, numbers(5, 3)), fn(js.mask_params(params, masks), numbers(5, 3)))


def test_a_mean_over_channels_still_divides_by_all():
    """Channels of a residual stream are zero in the masked model, and counted."""
    model, _, masked, small, fn, _ = shrink_half("tied_transformer")
    assert leaves_by_path(small)["params/Embed_0/embedding"].shape == (7, 4)
    assert_same(fn(small, *model.inputs), model.fn(masked, *model.inputs))


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("name", ["tied_transformer", "depthwise", "grouped", "recurrent"])
def test_any_masks_are_honoured(name, seed):
    """Whole channels are empty in some leaves, single weights in others."""
    model, rng = MODELS[name](), np.random.default_rng(seed)
    channels = js.graph.channels(model.fn, model.params, *model.inputs)
    masks = {path: rng.random(shape) < 0.8 for path, shape in channels.shapes.items()}
    for group in channels.groups:
        dead = rng.permutation(group.size)[: group.size // 2]
        for path in dict.fromkeys(place.path for place in group.places):
            if rng.random() < 0.6:
                empty_in(masks[path], channels, path, group.id, dead)
    small, fn, _ = js.graph.shrink(model.fn, model.params, masks, *model.inputs)
    masked = js.mask_params(model.params, masks)
    assert_same(jax.jit(fn)(small, *model.inputs), jax.jit(model.fn)(masked, *model.inputs), 1e-5)


def test_inputs_of_another_shape():
    model, _, masked, small, fn, _ = shrink_half("tied_transformer")
    tokens = jnp.array([[1, 2, 3, 4, 5]] * 3)
    assert_same(fn(small, tokens), model.fn(masked, tokens))


def test_gradients_are_those_of_the_masked_model():
    model, _, masked, small, fn, report = shrink_half("gated_fused")

    def loss(run):
        return lambda params: jnp.sum(run(params, *model.inputs) ** 2)

    actual = jax.jit(jax.grad(loss(fn)))(small)
    expected = leaves_by_path(jax.grad(loss(model.fn))(masked))
    for path, gradient in leaves_by_path(actual).items():
        assert_same(gradient, expected[path][np.ix_(*report.kept[path])])


def test_export():
    model, _, masked, small, fn, _ = shrink_half("scanned_transformer")
    exported = jax.export.export(jax.jit(fn))(small, *model.inputs)
    loaded = jax.export.deserialize(exported.serialize())
    assert_same(loaded.call(small, *model.inputs), model.fn(masked, *model.inputs))


def test_compiled_flops_fall():
    """Half the neurons and half the heads: half the work of both."""
    model, _, masked, small, fn, _ = shrink_half("tied_transformer")

    def flops(fn, params):
        return jax.jit(fn).lower(params, *model.inputs).compile().cost_analysis()["flops"]

    assert flops(fn, small) < 0.5 * flops(model.fn, masked)


def test_masks_of_the_smaller_leaves():
    _, _, _, small, _, report = shrink_half("gated")
    assert {path: mask.shape for path, mask in report.masks.items()} == {
        path: leaf.shape for path, leaf in leaves_by_path(small).items()
    }
    assert "8 -> 4 channels" in str(report) and "104 -> 52 parameters (50.0%)" in str(report)


def test_mistakes_are_errors():
    fn, params = two_layers(jnp.tanh, 0.3)
    x, masks = numbers(5, 3), first_empty("up", "bias", "down")
    with pytest.raises(ValueError, match="neither 'union' nor 'intersection'"):
        js.graph.shrink(fn, params, masks, x, resolve="both")
    small, run, _ = js.graph.shrink(fn, params, masks, x)
    with pytest.raises(
        ValueError, match=r"'up' has shape \(3, 4\); the smaller model has \(3, 3\)"
    ):
        run(small | {"up": params["up"]}, x)
    with pytest.raises(TypeError, match=r"'up' is ShapeDtypeStruct.*, a shape: .* would work"):
        js.graph.shrink(fn, {"up": jax.ShapeDtypeStruct((3, 4), "float32")}, masks, x)
    with pytest.raises(KeyError, match="no leaf 'up'; did you mean 'ups'"):
        run({"bias": small["bias"], "down": small["down"], "ups": small["up"]}, x)


def test_blocks_declared_by_hand_go_as_a_whole():
    """Pairs of neurons: the trace knows nothing of them."""
    fn, params = two_layers(jnp.tanh, 0.3)
    x, blocks = numbers(5, 3), {"up": (1, 2)}
    channels = js.graph.channels(fn, params, x, blocks=blocks)
    assert [group.size for group in channels.groups] == [2]
    assert "is one of blocks of 2, as declared" in str(channels)
    small, _, _ = js.graph.shrink(fn, params, first_empty("down"), x, blocks=blocks)
    assert small["up"].shape == (3, 4)
    masks = {"down": jnp.ones((4, 2), bool).at[:2].set(False)}
    small, run, _ = js.graph.shrink(fn, params, masks, x, blocks=blocks)
    assert small["up"].shape == (3, 2)
    assert_same(run(small, x), fn(js.mask_params(params, masks), x))
    with pytest.raises(ValueError, match=r"'up' of shape \(3, 4\) has no axis 1 which is"):
        js.graph.channels(fn, params, x, blocks={"up": (1, 3)})
    with pytest.raises(ValueError, match="matches no leaf; did you mean 'up'"):
        js.graph.channels(fn, params, x, blocks={"upp": (1, 2)})


@pytest.mark.parametrize("resolve", ["union", "intersection"])
@pytest.mark.parametrize("batch", [5, 0])
def test_layers_of_width_0_and_batches_of_0(resolve, batch):
    def fn(p, x):
        return jnp.tanh(jnp.tanh(x @ p["up"] + p["bias"]) @ p["down"] + p["c"]) @ p["e"]

    shapes = {"up": (3, 0), "bias": (0,), "down": (0, 4), "c": (4,), "e": (4, 2)}
    params = randomize({path: jnp.zeros(shape) for path, shape in shapes.items()})
    masks = {path: jnp.ones(shape, bool) for path, shape in shapes.items()}
    masks["e"] = masks["e"].at[2:].set(False)
    x = jnp.ones((batch, 3))
    small, run, report = js.graph.shrink(fn, params, masks, x, resolve=resolve)
    assert {path: leaf.shape for path, leaf in small.items()} == shapes | {
        "down": (0, 2),
        "c": (2,),
        "e": (2, 2),
    }
    np.testing.assert_allclose(run(small, x), fn(js.mask_params(params, masks), x), rtol=1e-6)
    assert "0 channels in bias[0], down[0], up[1]: has no channels" in str(report.channels)


def test_where_everything_is_masked_one_channel_of_each_group_stays():
    fn, params = two_layers(jnp.tanh, 0.3)
    masks = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, bool), params)
    small, run, report = js.graph.shrink(fn, params, masks, numbers(5, 3))
    assert small["up"].shape == (3, 1) and len(report.groups[0].kept) == 1
    assert [len(row.channels) for row in report.pinned] == [2, 3]
    np.testing.assert_array_equal(run(small, numbers(5, 3)), np.zeros((5, 2)))


def test_a_model_without_parameters_or_masks():
    fn, params = two_layers(jnp.tanh, 0.3)
    small, _, report = js.graph.shrink(fn, params, {}, numbers(5, 3))
    assert str(report) == "24 -> 24 parameters (100.0%)" and not report.groups
    assert jax.tree.map(jnp.shape, small) == jax.tree.map(jnp.shape, params)
    assert js.graph.shrink(lambda params, x: x, {}, {}, numbers(5, 3))[2].after == 0


def test_numbers_of_python_among_the_parameters():
    fn, params = two_layers(jnp.tanh, 0.3)
    params |= {"scale": 2.0, "count": 3}
    masks = first_empty("up", "bias", "down")

    def scaled(p, x):
        return fn(p, x) * p["scale"] + p["count"]

    small, run, _ = js.graph.shrink(scaled, params, masks, numbers(5, 3))
    assert small["up"].shape == (3, 3) and small["scale"] == 2.0
    assert_same(run(small, numbers(5, 3)), scaled(js.mask_params(params, masks), numbers(5, 3)))


def test_keys_that_are_closed_over():
    """As many as there are examples: one random mask each."""
    _, params = two_layers(jnp.tanh, 0.3)
    keys, masks = jax.random.split(jax.random.key(3), 5), first_empty("down")

    def noisy(p, x):
        noise = jax.vmap(lambda key: jax.random.normal(key, (4,)))(keys)
        return (jnp.tanh(x @ p["up"] + p["bias"]) + noise) @ p["down"]

    small, run, _ = js.graph.shrink(noisy, params, masks, numbers(5, 3))
    assert small["up"].shape == (3, 3)
    assert_same(run(small, numbers(5, 3)), noisy(js.mask_params(params, masks), numbers(5, 3)))


def test_leaves_that_are_to_be_kept_keep_their_shape():
    def fn(params, x):
        """Five of eight positions are read."""
        x = x + params["position"][: x.shape[0]]
        return jnp.tanh(x @ params["up"]) @ params["down"]

    params = {"position": numbers(8, 3), "up": numbers(3, 6), "down": numbers(6, 2)}
    x = numbers(5, 3)
    masks = {"position": jnp.arange(8)[:, None] < jnp.full(3, 5)}
    masks["down"] = jnp.broadcast_to(jnp.arange(6)[:, None] < 4, (6, 2))
    small, _, _ = js.graph.shrink(fn, params, masks, x)
    assert (small["position"].shape, small["up"].shape) == ((6, 3), (3, 4))  # one always stays
    small, run, report = js.graph.shrink(fn, params, masks, x, keep=("pos.*",))
    assert (small["position"].shape, small["up"].shape) == ((8, 3), (3, 4))
    assert "3 masked channels stay; pinned: 8 channels in position[0]: is kept" in str(report)
    masked = js.mask_params(params, masks)
    for length in 5, 4:  # another length is another analysis
        assert_same(run(small, x[:length]), fn(masked, x[:length]))
    with pytest.raises(ValueError, match="keep: 'potision' matches no leaf; did you mean 'pos"):
        js.graph.shrink(fn, params, masks, x, keep=("potision",))
    with pytest.raises(TypeError, match=r"keep='pos.\*' is no list"):
        js.graph.shrink(fn, params, masks, x, keep="pos.*")
    with pytest.raises(ValueError, match=r"keep: '\(' is no regular expression: .*'\\\\\('"):
        js.graph.shrink(fn, params, masks, x, keep=("(",))
    for wrong in None, (1,):
        with pytest.raises(TypeError, match=r"keep=.* is no list of regular expressions"):
            js.graph.shrink(fn, params, masks, x, keep=wrong)  # pyright: ignore[reportArgumentType]
