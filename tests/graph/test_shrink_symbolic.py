"""What `shrink` returns exports with symbolic sizes, and runs at sizes it was not traced with."""

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from architectures import ARCHITECTURES
from flax import linen as nn
from graph_models import linen, numbers, randomize
from test_channels import assert_same
from test_shrink import emptying

import jaxsparse as js
from jaxsparse.graph.analysis.symbolic import StandIns


class Net(nn.Module):
    """Convolutions of every kind, a class token, attention, merged and split axes."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(8, (3, 3))(x))
        x = nn.relu(nn.Conv(8, (3, 3), feature_group_count=8)(x))
        x = nn.relu(nn.ConvTranspose(8, (2, 2), (2, 2), transpose_kernel=True)(x))
        x = nn.max_pool(x, (2, 2), (2, 2)).reshape(x.shape[0], -1, 8)
        token = jnp.broadcast_to(self.param("token", nn.initializers.ones, (8,)), x[:, :1].shape)
        x = jnp.concatenate([token, x], 1)
        x = x + nn.MultiHeadDotProductAttention(2)(x, x)
        x = nn.LayerNorm()(nn.Dense(8)(x.reshape(-1, 8)).reshape(x.shape))
        return nn.Dense(3)(x[:, 0] + x.mean(1))


def shrunk(net, x):
    fn, params, x = linen(net, x)
    params = randomize(params)
    channels = js.graph.channels(fn, params, x)
    masks = emptying(channels, channels.groups)
    small, run, report = js.graph.shrink(fn, params, masks, x)
    assert report.after < 0.6 * report.before
    return small, jax.jit(run), jax.jit(lambda x: fn(js.mask_params(params, masks), x))


def exported(run, small, *shape):
    symbols = jax.export.symbolic_shape(", ".join(map(str, shape)))
    exported = jax.export.export(run)(small, jax.ShapeDtypeStruct(symbols, jnp.float32))
    return jax.export.deserialize(exported.serialize())


@pytest.mark.slow
def test_a_symbolic_batch():
    small, run, masked = shrunk(Net(), numbers(2, 4, 4, 3))
    called = exported(run, small, "b", 4, 4, 3).call
    for batch in (1, 5):
        x = numbers(batch, 4, 4, 3, seed=batch)
        assert_same(called(small, x), masked(x))
        assert_same(run(small, x), masked(x))


@pytest.mark.slow
def test_symbolic_places():
    """A token more than there are places: an axis of size h * w + 1."""
    small, run, masked = shrunk(Net(), numbers(2, 4, 4, 3))
    called = exported(run, small, "b", "2*h", "w", 3).call
    for shape in ((1, 2, 3), (3, 4, 2)):
        x = numbers(*shape, 3)
        assert_same(called(small, x), masked(x))


def test_a_recurrent_layer_over_an_open_number_of_steps():
    class Recurrent(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(3)(nn.RNN(nn.SimpleCell(8))(nn.Dense(8)(x)))

    net, x = Recurrent(), numbers(2, 4, 4)
    params = randomize(net.init(jax.random.key(0), x))
    masks = {"params/SimpleCell_0/i/kernel": jnp.broadcast_to(jnp.arange(8)[:, None] < 5, (8, 8))}
    small, run, report = js.graph.shrink(net.apply, params, masks, x)
    assert report.after < report.before
    called = exported(jax.jit(run), small, "b", "steps", 4).call
    for shape in (1, 2), (3, 7):
        x = numbers(*shape, 4)
        assert_same(called(small, x), net.apply(js.mask_params(params, masks), x))


class Mlp(nn.Module):
    """Sizes that merge with the batch, and change there."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Dense(8)(x))
        x = x.reshape(-1) * 2
        return nn.Dense(3)(x.reshape(-1, 8))


@pytest.mark.slow
def test_channels_in_one_axis_with_the_batch():
    small, run, masked = shrunk(Mlp(), numbers(2, 4))
    called = exported(run, small, "b", 4).call
    assert_same(called(small, numbers(7, 4)), masked(numbers(7, 4)))


@pytest.mark.slow
def test_a_shrunk_and_packed_transformer_for_any_batch():
    """Which kernel to take is not asked of a size that is not known."""
    model = ARCHITECTURES["vit"]()
    rules = [js.Rule(r"layer/.*(query|key|value|dense)/kernel", js.Block(4, 4, pad=True), 0.8)]
    structure = js.graph.structure(model.fn, model.params, *model.inputs)
    masks = structure.resolve(js.compute_masks(model.params, rules), refill=False)
    small, run, report = js.graph.shrink(model.fn, model.params, masks, *model.inputs)
    assert report.after < report.before
    packed = js.pack_params(small, report.masks, rules)
    called = exported(jax.jit(js.sparsify(run)), packed, "b", 8, 8, 3).call
    for batch in 1, 3:
        x = numbers(batch, 8, 8, 3, seed=batch)
        masked = model.fn(js.mask_params(model.params, masks), x)
        np.testing.assert_allclose(called(packed, x), masked, atol=1e-5)


def test_shrinking_on_symbolic_shapes():
    """Shapes are enough to shrink, symbolic ones too."""
    net, x = Mlp(), numbers(2, 4)
    params = randomize(net.init(jax.random.key(0), x))
    (b,) = jax.export.symbolic_shape("b")
    masks = {"params/Dense_1/kernel": jnp.broadcast_to(jnp.arange(8)[:, None] < 5, (8, 3))}
    shape = jax.ShapeDtypeStruct((b, 4), jnp.float32)
    small, run, _ = js.graph.shrink(net.apply, params, masks, shape)
    assert small["params"]["Dense_0"]["kernel"].shape == (4, 5)
    assert_same(run(small, x), net.apply(js.mask_params(params, masks), x))


def test_numbers_for_symbolic_sizes():
    a, b = jax.export.symbolic_shape("a, b")
    numbers = StandIns([(a, b, 3), (102, a * 8)])
    assert [numbers.size(d) for d in (a, b, 7)] == [113, 127, 7]  # 101 to 109 are near 102
    assert numbers.size(a * a * 2 + b // 5) == 2 * 113**2 + 25
    assert StandIns([(b % 8, 4)]).numbers["b"] % 8 == 0
