"""Recurrent models, and models that draw random numbers, shrink like any other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from graph_models import numbers, randomize
from test_channels import assert_same
from test_modules import analysed, drawn, masked
from test_shrink import emptying

import jaxsparse as js

CELLS = [
    "GRUCell",
    *(pytest.param(c, marks=pytest.mark.slow) for c in ("SimpleCell", "LSTMCell")),
    pytest.param("OptimizedLSTMCell", marks=pytest.mark.slow),
]
X = numbers(2, 5, 6)


class Tagger(nnx.Module):
    """A recurrent layer, dropout and a head; its random streams are part of it."""

    def __init__(self, cell):
        rngs = nnx.Rngs(0)
        self.rnn = nnx.RNN(getattr(nnx, cell)(6, 8, rngs=rngs), rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.head = nnx.Linear(8, 3, rngs=rngs)

    def __call__(self, x):
        return self.head(self.dropout(self.rnn(x)))


@pytest.mark.parametrize("cell", CELLS)
def test_cells_of_nnx(cell):
    model = drawn(Tagger(cell))
    model.eval()
    channels = analysed(model, X)
    assert [group.size for group in channels.groups] == [8]
    masks = emptying(channels, channels.groups)
    small, report = js.graph.shrink_model(model, masks, X)
    assert (small.rnn.cell.in_features, small.rnn.cell.hidden_features) == (6, 4)
    assert small.head.in_features == 4 and report.after < 0.5 * report.before
    assert_same(small(X), masked(model, masks)(X))


@pytest.mark.slow
@pytest.mark.parametrize("cell", CELLS[::3])
def test_the_model_itself_as_parameters(cell):
    """Keys and counts of its random streams are leaves like any other."""
    model = drawn(Tagger(cell))
    model.eval()
    channels = analysed(model, X)
    masks = emptying(channels, channels.groups)
    small, run, report = js.graph.shrink(lambda model, x: model(x), model, masks, X)
    assert report.after < 0.5 * report.before
    assert_same(run(small, X), masked(model, masks)(X))
    longer = numbers(3, 9, 6, seed=4)
    assert_same(run(small, longer), masked(model, masks)(longer))


@pytest.mark.slow
@pytest.mark.parametrize("cell", CELLS[::2])
def test_cells_of_linen(cell):
    net = nn.Sequential([nn.RNN(getattr(nn, cell)(8)), nn.Dense(3)])
    params = randomize(net.init(jax.random.key(0), X))
    channels = js.graph.channels(net.apply, params, X)
    masks = emptying(channels, channels.groups)
    small, run, report = js.graph.shrink(net.apply, params, masks, X)
    assert [len(group.kept) for group in report.groups] == [4]
    assert_same(run(small, X), net.apply(js.mask_params(params, masks), X))


def test_a_constant_state_stays():
    """tanh of a bias goes round in the loop: no bias can take it over there."""
    model = drawn(Tagger("SimpleCell"))
    model.eval()
    dead = jnp.arange(8) >= 4
    masks = {"rnn/cell/dense_i/kernel": jnp.broadcast_to(~dead, (6, 8))}
    small, report = js.graph.shrink_model(model, masks, X)
    assert small.rnn.cell.hidden_features == 8
    (stay,) = report.groups[0].stays
    assert stay.channels.tolist() == [4, 5, 6, 7]
    assert set(stay.reasons) == {"rnn/cell/dense_h/kernel reads them", "head/kernel reads them"}
    assert stay.cures[0] == ("rnn/cell/dense_h/kernel", "head/kernel")
    masks |= {"rnn/cell/dense_h/kernel": jnp.broadcast_to(~dead[:, None], (8, 8))}
    masks |= {"head/kernel": jnp.broadcast_to(~dead[:, None], (8, 3))}
    small, _ = js.graph.shrink_model(model, masks, X)
    assert small.rnn.cell.hidden_features == 4
    assert_same(small(X), masked(model, masks)(X))


class Dropped(nn.Module):
    """Dropout between two layers, drawn from a key."""

    @nn.compact
    def __call__(self, x):
        x = nn.Dropout(0.5, deterministic=False)(nn.relu(nn.Dense(8)(x)))
        return nn.Dense(3)(x)


@pytest.mark.slow
@pytest.mark.parametrize("typed", [True, False])
def test_dropout_drops_what_it_dropped_before(typed):
    """In training mode, with the key as an argument: the numbers drawn are cut, not redrawn."""
    net, x = Dropped(), numbers(4, 6)
    key = (jax.random.key if typed else jax.random.PRNGKey)(7)
    params = randomize(net.init({"params": key, "dropout": key}, x))
    dead = jnp.arange(8) >= 5
    masks = {"params/Dense_1/kernel": jnp.broadcast_to(~dead[:, None], (8, 3))}

    def fn(params, x, key):
        return net.apply(params, x, rngs={"dropout": key})

    small, run, report = js.graph.shrink(fn, params, masks, x, key)
    assert small["params"]["Dense_0"]["kernel"].shape == (6, 5)
    for seed in range(3):
        key = (jax.random.key if typed else jax.random.PRNGKey)(seed)
        assert_same(run(small, x, key), fn(js.mask_params(params, masks), x, key))
    with pytest.raises(ValueError, match="may go, but not all may change places"):
        report.channels.permuted(params, {})
    assert not js.graph.channels(fn, params, x, key).groups


@pytest.mark.slow
def test_dropout_of_a_constant_is_no_constant():
    net, x, key = Dropped(), numbers(4, 6), jax.random.key(7)
    params = randomize(net.init({"params": key, "dropout": key}, x))
    masks = {"params/Dense_0/kernel": jnp.broadcast_to(jnp.arange(8) < 4, (6, 8))}
    params["params"]["Dense_0"]["bias"] = jnp.full(8, 0.5)

    def fn(params, x, key):
        return net.apply(params, x, rngs={"dropout": key})

    small, run, report = js.graph.shrink(fn, params, masks, x, key)
    assert small["params"]["Dense_0"]["kernel"].shape == (6, 8)
    assert report.groups[0].stays[0].reasons == ("params/Dense_1/kernel reads them",)
    assert_same(run(small, x, key), fn(js.mask_params(params, masks), x, key))


def test_active_dropout_is_an_error_for_a_model():
    model = drawn(Tagger("GRUCell"))
    with pytest.raises(ValueError, match=r"'dropout' is active.*model.eval\(\) first"):
        js.graph.shrink_model(model, {"head/kernel": np.ones((8, 3), bool)}, X)
