"""Surgery on `nnx` models: the smaller model is a model of its own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from graph_models import IMAGE, numbers, randomize
from test_channels import assert_same
from test_shrink import emptying

import jaxsparse as js


class Net(nnx.Module):
    """Convolutions of every kind, and attention over what they found."""

    def __init__(self, rngs):
        self.conv = nnx.Conv(3, 8, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(8, use_running_average=True, rngs=rngs)
        self.depthwise = nnx.Conv(8, 8, (3, 3), feature_group_count=8, rngs=rngs)
        self.pointwise = nnx.Conv(8, 12, (1, 1), rngs=rngs)
        self.grouped = nnx.Conv(12, 16, (3, 3), feature_group_count=2, rngs=rngs)
        self.mix = nnx.Linear(16, 6, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(
            num_heads=4, in_features=6, qkv_features=8, decode=False, rngs=rngs
        )
        self.out = nnx.Linear(6, 2, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.norm(self.conv(x)))
        x = nnx.relu(self.pointwise(nnx.relu(self.depthwise(x))))
        x = nnx.relu(self.mix(self.grouped(x).mean(2)))
        return self.out(nnx.relu(self.attention(x) + x))


def drawn(model):
    """The model with random numbers for its weights."""
    graph, random, params = nnx.split(model, nnx.RngState, ...)
    return nnx.merge(graph, random, randomize(params))


def masked(model, masks):
    graph, random, params = nnx.split(model, nnx.RngState, ...)
    return nnx.merge(graph, random, js.mask_params(params, masks))


def analysed(model, *inputs):
    graph, random, params = nnx.split(model, nnx.RngState, ...)
    call = lambda p, *x: nnx.merge(graph, random, p, copy=True)(*x)  # noqa: E731
    return js.graph.channels(call, params, *inputs)


@pytest.mark.slow
def test_every_module_gets_its_new_sizes():
    model = drawn(Net(nnx.Rngs(0)))
    channels = analysed(model, IMAGE)
    # A smaller head_dim would change the scale of attention.
    chosen = [g for g in channels.groups if not (g.size == 2 and "attention" in str(g))]
    assert len(chosen) < len(channels.groups)
    masks = emptying(channels, chosen)
    small, report = js.graph.shrink_model(model, masks, IMAGE)
    assert (small.conv.in_features, small.conv.out_features) == (3, 4)
    assert small.norm.num_features == 4
    assert (small.depthwise.feature_group_count, small.depthwise.in_features) == (4, 4)
    assert (small.grouped.feature_group_count, small.grouped.out_features) == (1, 4)
    assert (small.attention.num_heads, small.attention.head_dim) == (2, 2)
    assert small.attention.query.out_features == (2, 2)
    assert small.out.in_features == 3
    assert report.after < 0.4 * report.before
    call = nnx.jit(lambda model, x: model(x))
    assert_same(call(small, IMAGE), call(masked(model, masks), IMAGE))
    assert model.conv.out_features == 8  # the old one is as it was


def test_it_trains_on():
    model = drawn(Net(nnx.Rngs(0)))
    channels = analysed(model, IMAGE)
    masks = emptying(channels, [g for g in channels.groups if "conv/kernel" in str(g)])
    small, _ = js.graph.shrink_model(model, masks, IMAGE)
    gradients = nnx.jit(nnx.grad(lambda m: jnp.sum(m(IMAGE) ** 2)))(small)
    assert gradients["conv"]["kernel"].shape == (3, 3, 3, 4)
    shapes = jax.tree.map(jnp.shape, nnx.state(small, nnx.Param))
    assert jax.tree.leaves(shapes) == jax.tree.leaves(jax.tree.map(jnp.shape, gradients))


def test_a_norm_that_would_count_fewer_channels_is_an_error():
    model = drawn(
        nnx.Sequential(
            nnx.Linear(3, 8, rngs=nnx.Rngs(0)),
            nnx.LayerNorm(8, rngs=nnx.Rngs(0)),
            nnx.Linear(8, 2, rngs=nnx.Rngs(0)),
        )
    )
    x = numbers(5, 3)
    masks = emptying(analysed(model, x), analysed(model, x).groups)
    with pytest.raises(ValueError, match="something else than the masked one: outputs differ by"):
        js.graph.shrink_model(model, masks, x)


class Stubborn(nnx.Module):
    """Its code has a size written into it."""

    def __init__(self, rngs):
        self.up, self.down = nnx.Linear(3, 8, rngs=rngs), nnx.Linear(8, 2, rngs=rngs)

    def __call__(self, x):
        return self.down(nnx.relu(self.up(x)).reshape(-1, 8))


def test_code_that_insists_on_a_size_is_an_error():
    model = drawn(Stubborn(nnx.Rngs(0)))
    x = numbers(5, 3)
    masks = emptying(analysed(model, x), analysed(model, x).groups)
    with pytest.raises(ValueError, match="its own code insists on sizes"):
        js.graph.shrink_model(model, masks, x)
    with pytest.raises(ValueError, match="its own code insists on sizes"):
        js.graph.shrink_model(model, masks, jax.ShapeDtypeStruct((5, 3), np.float32))


def test_what_is_no_module_is_referred_to_the_function_that_takes_it():
    with pytest.raises(TypeError, match=r"function is no nnx.Module; shrink\(apply, params, masks"):
        js.graph.shrink_model(lambda x: x, {}, numbers(5, 3))  # pyright: ignore[reportArgumentType]


def test_constants_go_into_the_next_bias():
    model = drawn(
        nnx.Sequential(
            nnx.Linear(3, 8, rngs=nnx.Rngs(0)), nnx.gelu, nnx.Linear(8, 2, rngs=nnx.Rngs(0))
        )
    )
    x, masks = numbers(5, 3), {"layers/0/kernel": jnp.broadcast_to(jnp.arange(8) < 5, (3, 8))}
    small, report = js.graph.shrink_model(model, masks, x)
    assert small.layers[0].out_features == 5
    assert report.groups[0].folded["layers/2/bias"].tolist() == [5, 6, 7]
    assert_same(small(x), masked(model, masks)(x))
