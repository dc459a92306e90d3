"""Networks drawn at random: what the analysis calls free is free, what shrinks is the same."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from graph_models import Model
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_channels import assert_same, shuffles
from test_shrink import empty_in

import jaxsparse as js

# What a layer may be; each maps (batch, places, width) to (batch, places, some width).
LAYERS: dict[str, Callable[..., Any]] = {}


def layer(function):
    """Enters a layer under its name."""
    LAYERS[function.__name__] = function
    return function


class Network:
    """A chain of layers, drawn; `fn` runs it and `params` are its weights."""

    def __init__(self, names, seed):
        self.names, self.seed = names, seed
        self.params = {}
        x = jnp.zeros((2, 4, 3))
        self._making = True
        jax.eval_shape(lambda x: self.run(self.params, x), x)
        self._making = False

    def fn(self, params, x):
        return self.run(params, x)

    def weight(self, params, name, *shape):
        if self._making:
            rng = np.random.default_rng([self.seed, len(self.params)])
            scale = max(shape[-2], 1) ** -0.5 if len(shape) > 1 else 0.5
            params[name] = rng.normal(size=shape) * scale
        return jnp.asarray(params[name])

    def run(self, params, x):
        rng = np.random.default_rng(self.seed)
        x = self.dense(params, "first", x, 8)
        for i, name in enumerate(self.names):
            x = LAYERS[name](self, params, f"{i}_{name}", x, rng)
        return self.dense(params, "last", x, 2)

    def dense(self, params, name, x, width=None):
        width = width or x.shape[-1]
        kernel = self.weight(params, f"{name}/kernel", x.shape[-1], width)
        return x @ kernel + self.weight(params, f"{name}/bias", width)

    def __repr__(self):
        return f"Network({self.names}, {self.seed})"


@layer
def dense(net, params, name, x, rng):
    return net.dense(params, name, x, int(rng.choice([4, 8, 12])))


@layer
def relu(net, params, name, x, rng):
    return jax.nn.relu(x)


@layer
def gelu(net, params, name, x, rng):
    return jax.nn.gelu(x)


@layer
def norm(net, params, name, x, rng):
    centred = x - x.mean(-1, keepdims=True)
    scale = net.weight(params, f"{name}/scale", x.shape[-1])
    return centred * jax.lax.rsqrt((centred**2).mean(-1, keepdims=True) + 0.1) * scale


@layer
def batchnorm(net, params, name, x, rng):
    mean, scale = (net.weight(params, f"{name}/{k}", x.shape[-1]) for k in ("mean", "scale"))
    return (x - mean) * scale


@layer
def residual(net, params, name, x, rng):
    return x + jnp.tanh(net.dense(params, name, x))


@layer
def gate(net, params, name, x, rng):
    return jax.nn.silu(net.dense(params, f"{name}_a", x, 8)) * net.dense(params, f"{name}_b", x, 8)


@layer
def concatenate(net, params, name, x, rng):
    return jnp.concatenate(
        [x, net.dense(params, name, x, int(rng.choice([4, 8]))), x[..., : x.shape[-1] // 2]], -1
    )


@layer
def split(net, params, name, x, rng):
    at = int(rng.integers(1, x.shape[-1])) if x.shape[-1] > 1 else 0
    a, b = x[..., :at], x[..., at:]
    return jnp.concatenate([jnp.tanh(b), a], -1)


@layer
def heads(net, params, name, x, rng):
    heads = 2 if x.shape[-1] % 2 == 0 else 1
    y = x.reshape(*x.shape[:-1], heads, -1)
    kernel = net.weight(params, f"{name}/kernel", heads, y.shape[-1], 4)
    return jnp.einsum("btho,hoe->bthe", y, kernel).reshape(*x.shape[:-1], -1)


@layer
def mix(net, params, name, x, rng):
    groups = 4 if x.shape[-1] % 4 == 0 else 1
    y = x.reshape(*x.shape[:-1], groups, -1)
    return jnp.swapaxes(y, -1, -2).reshape(x.shape)


@layer
def attention(net, params, name, x, rng):
    q, k, v = jnp.split(net.dense(params, name, x, 24), 3, axis=-1)
    q, k, v = (y.reshape(2, -1, 2, 4) for y in (q, k, v))
    y = jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(jnp.einsum("bqhd,bkhd->bhqk", q, k)), v)
    return net.dense(params, f"{name}_out", y.reshape(*x.shape[:-1], 8), x.shape[-1]) + x


@layer
def scan(net, params, name, x, rng):
    kernels = net.weight(params, f"{name}/kernels", 3, x.shape[-1], x.shape[-1])
    return jax.lax.scan(lambda c, w: (jnp.tanh(c @ w) + c, None), x, kernels)[0]


@layer
def conv(net, params, name, x, rng, groups=1, width=8):
    kernel = net.weight(params, f"{name}/kernel", 3, x.shape[-1] // groups, width)
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        [1],
        "SAME",
        dimension_numbers=("NHC", "HIO", "NHC"),
        feature_group_count=groups,
    )


@layer
def depthwise(net, params, name, x, rng):
    return conv(net, params, name, x, rng, x.shape[-1], x.shape[-1])


@layer
def grouped(net, params, name, x, rng):
    return conv(net, params, name, x, rng, 2 if x.shape[-1] % 2 == 0 else 1)


@layer
def window(net, params, name, x, rng):
    """Of two places, with a bias: constants pass it, or do not where it pads."""
    padding = "VALID" if x.shape[1] > 1 and rng.random() < 0.7 else "SAME"
    groups = int(rng.choice([g for g in (1, 2, x.shape[-1]) if x.shape[-1] % g == 0]))
    width = groups * int(rng.choice([1, 2])) if groups > 2 else 8
    kernel = net.weight(params, f"{name}/kernel", 2, x.shape[-1] // groups, width)
    options = {"dimension_numbers": ("NHC", "HIO", "NHC"), "feature_group_count": groups}
    y = jax.lax.conv_general_dilated(x, kernel, [1], padding, **options)
    return jax.nn.relu(y + net.weight(params, f"{name}/bias", width))


@layer
def up(net, params, name, x, rng):
    """A transposed convolution, its kernel stored turned round or not."""
    turned = bool(rng.integers(2))
    shape = (2, 8, x.shape[-1]) if turned else (2, x.shape[-1], 8)
    y = jax.lax.conv_transpose(
        *(x, net.weight(params, f"{name}/kernel", *shape), [2], "SAME"),
        dimension_numbers=("NHC", "HIO", "NHC"),
        transpose_kernel=turned,
    )
    return y[:, ::2] + y[:, 1::2] + net.weight(params, f"{name}/bias", 8)


@layer
def recurrent(net, params, name, x, rng):
    """A cell with a forget gate, over the places; two gates come of one product."""
    kernel = net.weight(params, f"{name}/kernel", x.shape[-1], 12)
    inner = net.weight(params, f"{name}/inner", 6, 12)
    bias = net.weight(params, f"{name}/bias", 12)

    def step(carry, x):
        forget, new = jnp.split(x @ kernel + carry @ inner + bias, 2, axis=-1)
        carry = jax.nn.sigmoid(forget) * carry + jnp.tanh(new)
        return carry, carry

    steps = jax.lax.scan(step, jnp.zeros((x.shape[0], 6)), jnp.swapaxes(x, 0, 1))[1]
    return jnp.swapaxes(steps, 0, 1)


@layer
def closed_over(net, params, name, x, rng):
    """Statistics that are no parameters: they can be cut, but not permuted."""
    mean, scale = rng.normal(size=(2, x.shape[-1]))
    return (x - mean) * scale


@layer
def dropout(net, params, name, x, rng):
    chosen = jax.random.bernoulli(jax.random.key(int(rng.integers(99))), 0.8, x.shape)
    return jnp.where(chosen, x / 0.8, 0)


@layer
def pool(net, params, name, x, rng):
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 2, 1), (1, 1, 1), "SAME")


@layer
def cumsum(net, params, name, x, rng):
    return jnp.cumsum(x, axis=int(rng.integers(1, 3))) / 4


@layer
def sort(net, params, name, x, rng):
    return jnp.sort(x, axis=int(rng.integers(1, 3)))


@layer
def transpose(net, params, name, x, rng):
    kernel = net.weight(params, f"{name}/kernel", 4, x.shape[1])
    return jnp.swapaxes(jnp.swapaxes(x, 1, 2) @ kernel.T, 1, 2)[:, : x.shape[1]]


@layer
def select(net, params, name, x, rng):
    chosen = jnp.sum(x) > 0
    kernel = net.weight(params, f"{name}/kernel", x.shape[-1], x.shape[-1])
    return jax.lax.cond(chosen, lambda y: jnp.sin(y @ kernel), lambda y: y * 0.5, x)


@layer
def tie(net, params, name, x, rng):
    kernel = net.weight(params, f"{name}/kernel", x.shape[-1], 8)
    return jnp.tanh(x @ kernel) @ kernel.T


@layer
def loop(net, params, name, x, rng):
    kernel = net.weight(params, f"{name}/kernel", x.shape[-1], x.shape[-1])
    return jax.lax.fori_loop(0, 2, lambda _, c: jnp.tanh(c @ kernel) + x, x)


def check(names, seed):
    """In float64: three attentions in a row amplify the rounding of float32 beyond 1e-6."""
    with jax.enable_x64(True):
        check_in_float64(names, seed)


def check_in_float64(names, seed):
    network = Network(names, seed)
    x = jnp.asarray(np.random.default_rng(seed).normal(size=(2, 4, 3)))
    model = Model(network.fn, network.params, (x,), ())
    channels = js.graph.channels(model.fn, model.params, x)
    expected = model.fn(model.params, x)
    moved = channels.permuted(model.params, shuffles(channels, seed))
    assert_same(model.fn(moved, x), expected, 1e-12)

    rng = np.random.default_rng(seed)
    masks = {path: rng.random(shape) < 0.9 for path, shape in channels.shapes.items()}
    for group in channels.groups:
        dead = rng.permutation(group.size)[: group.size // 2]
        for path in dict.fromkeys(place.path for place in group.places):
            if rng.random() < 0.7:
                empty_in(masks[path], channels, path, group.id, dead)
    masked = js.mask_params(model.params, masks)
    small, fn, report = js.graph.shrink(model.fn, model.params, masks, x)
    expected = model.fn(masked, x)
    if np.max(np.abs(expected)) > 0:
        assert_same(fn(small, x), expected, 1e-10)
    check_cures(model, masks, report)


def check_cures(model, masks, report):
    """What the report advises for the first group that stays lets it go."""
    stuck = [(row.group, stay) for row in report.groups for stay in row.stays if stay.cures]
    for group, stay in stuck[:1]:
        for paths in stay.cures:
            more = {path: np.array(mask) for path, mask in masks.items()}
            for path in paths:
                empty_in(more[path], report.channels, path, group.id, stay.channels)
            again = js.graph.shrink(model.fn, model.params, more, *model.inputs)[2]
            (row,) = [row for row in again.groups if row.group.id == group.id]
            last = [s for s in row.stays if "always stays" in s.reasons[0]]
            assert len(row.kept) == 1 or last or not {*stay.channels} & {*row.kept}, str(again)


drawn = given(st.lists(st.sampled_from(sorted(LAYERS)), max_size=4), st.integers(0, 10_000))
quiet = {"deadline": None, "derandomize": True, "suppress_health_check": list(HealthCheck)}


@drawn
@settings(max_examples=6, **quiet)
def test_a_few_networks(names, seed):
    check(names, seed)


@pytest.mark.slow
@drawn
@settings(max_examples=150, **quiet)
def test_many_networks(names, seed):
    check(names, seed)
