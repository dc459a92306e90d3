"""Small models of every shape that the channel graph has to understand.

`MODELS[name]()` returns a Model: a function, its parameters with random numbers
everywhere (zeros and ones would hide mistakes), inputs, and the sizes of the
groups that the analysis must find.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import nnx
from jax import lax


@dataclasses.dataclass(frozen=True)
class Model:
    """A function of (params, *inputs) and the sorted sizes of its groups."""

    fn: Callable[..., Any]
    params: Any
    inputs: tuple[Any, ...]
    groups: tuple[int, ...]


MODELS: dict[str, Callable[[], Model]] = {}


def model(*groups):
    """Enters a builder of (fn, params, *inputs) with the group sizes it must have."""

    def enter(build):
        def made():
            fn, params, *inputs = build()
            return Model(fn, randomize(params), tuple(inputs), groups)

        MODELS[build.__name__] = made
        return build

    return enter


def randomize(params, seed=0):
    """Random numbers for every leaf; those of a variance are positive."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            return leaf
        numbers = rng.normal(size=leaf.shape) / np.sqrt(max(leaf.size, 1) ** 0.5)
        numbers = numbers**2 + 0.5 if "var" in jax.tree_util.keystr(path) else numbers
        return jnp.asarray(numbers, leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, params)


def linen(module, *inputs, **kwargs):
    """fn, params and inputs of a linen module; shapes only, the numbers come later."""
    variables = jax.eval_shape(lambda *x: module.init(jax.random.key(0), *x, **kwargs), *inputs)
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), variables)
    return (lambda v, *x: module.apply(v, *x, **kwargs)), zeros, *inputs


def numbers(*shape, seed=1):
    """Random inputs."""
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def sequential(*layers):
    return linen(nn.Sequential(layers), numbers(2, 6, 6, 3))


@model(8, 12)
def chain():
    return linen(nn.Sequential([nn.Dense(8), nn.relu, nn.Dense(12), nn.tanh, nn.Dense(3)]), X)


X = numbers(4, 5)
IMAGE = numbers(2, 6, 6, 3)
TOKENS = jnp.array([[1, 4, 2, 6, 0], [3, 3, 5, 1, 2]])


class Wired(nn.Module):
    """Convolutions by name, wired up by a function."""

    wiring: Callable[..., Any]
    features: int = 8

    @nn.compact
    def __call__(self, x):
        def conv(name, x, features=self.features, **kwargs):
            return nn.Conv(features, (3, 3), name=name, **kwargs)(x)

        return self.wiring(conv, x)


def wired(wiring):
    return linen(Wired(wiring), IMAGE)


@model(8)
def siblings():
    def wiring(conv, x):
        x = nn.relu(conv("conv0", x))
        return conv("left", x), conv("right", x)

    return wired(wiring)


@model(8)
def residual():
    def wiring(conv, x):
        x = conv("conv0", x)
        x = x + nn.relu(conv("conv1", x))
        return conv("conv2", nn.relu(x))

    return wired(wiring)


@model(8, 8, 8, 8, 8)
def complex_siblings():
    def wiring(conv, x):
        one = conv("conv1_2", nn.relu(conv("conv1_1", x)))
        two = conv("conv2_2", nn.relu(conv("conv2_1", x)))
        both = nn.relu(one + two)
        three = conv("conv3_2", nn.relu(conv("conv3_1", both)))
        four = conv("conv4_2", nn.relu(conv("conv4_1", both)))
        return conv("conv1_3", both) + three + four

    return wired(wiring)


@model()
def leak_output():
    def wiring(conv, x):
        x = nn.relu(conv("conv0", x))
        return conv("conv1", x), x

    return wired(wiring)


@model()
def leak_unknown():
    def wiring(conv, x):
        x = nn.relu(conv("conv0", x))
        return conv("conv1", x), jnp.abs(jnp.fft.fft(x))

    return wired(wiring)


@model()
def leak_ordered():
    def wiring(conv, x):
        return conv("conv1", jnp.cumsum(nn.relu(conv("conv0", x)), axis=-1))

    return wired(wiring)


@model()
def leak_residual_of_input():
    def wiring(conv, x):
        return conv("conv1", conv("conv0", x, 3) + x)

    return wired(wiring)


@model(8, 5)
def flatten():
    layers = [nn.Conv(8, (3, 3)), nn.relu, lambda x: x.reshape(len(x), -1), nn.Dense(5)]
    return sequential(*layers, nn.relu, nn.Dense(2))


@model(8, 8)
def global_pooling():
    def pool(x):
        return nn.max_pool(x, (2, 2), (2, 2))

    def mean(x):
        return x.mean((1, 2))

    return sequential(nn.Conv(8, (3, 3)), pool, nn.Conv(8, (1, 1)), mean, nn.Dense(2))


@model(4, 8, 4)
def concatenation():
    def wiring(conv, x):
        one, two = conv("one", x, 4), conv("two", x, 8)
        x = jnp.concatenate([one, two, one], axis=-1)
        return conv("last", nn.relu(conv("next", x, 4)), 2)

    return wired(wiring)


@model(2, 4)
def group_norm():
    return sequential(nn.Conv(8, (3, 3)), nn.GroupNorm(num_groups=2), nn.relu, nn.Conv(2, (1, 1)))


@model(8, 8)
def norms():
    return sequential(
        nn.Conv(8, (3, 3)),
        nn.BatchNorm(use_running_average=True),
        nn.LayerNorm(),
        nn.Conv(8, (1, 1)),
        nn.RMSNorm(),
        nn.InstanceNorm(),
        nn.Conv(2, (1, 1)),
    )


@model(8)
def depthwise():
    depth = nn.Conv(8, (3, 3), feature_group_count=8)
    return sequential(nn.Conv(8, (1, 1)), nn.relu, depth, nn.relu, nn.Conv(2, (1, 1)))


@model(2, 4, 6)
def grouped():
    group = nn.Conv(12, (3, 3), feature_group_count=2)
    return sequential(nn.Conv(8, (1, 1)), nn.relu, group, nn.relu, nn.Conv(2, (1, 1)))


@model(2, 2, 4, 6)
def shuffle():
    """ShuffleNet: groups and channels in them change places."""

    def mix(x):
        return jnp.swapaxes(x.reshape(*x.shape[:-1], 2, 12), -1, -2).reshape(x.shape)

    first = nn.Conv(24, (1, 1))
    group = nn.Conv(8, (1, 1), feature_group_count=2)
    return sequential(first, mix, group, nn.relu, nn.Conv(2, (1, 1)))


@model(2, 4, 4, 8, 8)
def attention():
    class Attention(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.Dense(8)(x)
            return nn.Dense(2)(nn.MultiHeadDotProductAttention(2, qkv_features=8)(x))

    return linen(Attention(), numbers(2, 5, 3))


def _attend(q, k, v):
    scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) / jnp.sqrt(q.shape[-1])
    return jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(scores), v)


@model(2, 3, 4, 4)
def grouped_query_attention():
    """Six query heads, three to each of two key and value heads."""

    def fn(p, x):
        q, k, v = x @ p["q"], x @ p["k"], x @ p["v"]
        q = q.reshape(2, 5, 6, 4)
        k = jnp.repeat(k.reshape(2, 5, 2, 4), 3, axis=2)
        v = jnp.repeat(v.reshape(2, 5, 2, 4), 3, axis=2)
        return _attend(q, k, v).reshape(2, 5, 24) @ p["out"]

    params = {"q": (3, 24), "k": (3, 8), "v": (3, 8), "out": (24, 3)}
    return fn, _zeros(params), numbers(2, 5, 3)


@model(2, 3, 4)
def native_grouped_query_attention():
    """Keys and values in one kernel: its stack of two axes shares one head_dim."""

    def fn(p, x):
        q = jnp.einsum("bte,ehd->bthd", x, p["q"])
        k, v = jnp.einsum("bte,cehd->cbthd", x, p["kv"])
        y = jax.nn.dot_product_attention(q, k, v, implementation="xla")
        return jnp.einsum("bthd,hde->bte", y, p["out"])

    params = {"q": (3, 6, 4), "kv": (2, 3, 2, 4), "out": (6, 4, 3)}
    return fn, _zeros(params), numbers(2, 5, 3)


def _zeros(shapes):
    return {name: jnp.zeros(shape) for name, shape in shapes.items()}


@model(2, 4, 4)
def fused_qkv_split():
    def fn(p, x):
        q, k, v = jnp.split(x @ p["qkv"] + p["bias"], 3, axis=-1)
        q, k, v = (y.reshape(2, 5, 2, 4) for y in (q, k, v))
        return _attend(q, k, v).reshape(2, 5, 8) @ p["out"]

    return fn, _zeros({"qkv": (3, 24), "bias": (24,), "out": (8, 3)}), numbers(2, 5, 3)


@model(2, 4)
def fused_qkv_reshape():
    """Query, key and value are slices of one axis, so they share one head_dim."""

    def fn(p, x):
        y = (x @ p["qkv"] + p["bias"]).reshape(2, 5, 3, 2, 4)
        y = _attend(*jnp.moveaxis(y, 2, 0)).reshape(2, 5, 8)
        return y @ p["out"]

    return fn, _zeros({"qkv": (3, 24), "bias": (24,), "out": (8, 3)}), numbers(2, 5, 3)


@model(2)
def fused_heads_sliced():
    """Heads of query, key and value follow one another on one axis of heads."""

    def fn(p, x):
        y = jnp.einsum("bte,ef->btf", x, p["qkv"]).reshape(2, 5, 6, 4)
        # Rotary embeddings pair channels of query and key: only heads are free there.
        angle = jnp.arange(5.0)[:, None, None] * jnp.array([1.0, 0.1])
        q, k, v = y[:, :, :2], y[:, :, 2:4], y[:, :, 4:]

        def rotate(z):
            a, b = jnp.split(z, 2, axis=-1)
            cos, sin = jnp.cos(angle), jnp.sin(angle)
            return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], -1)

        y = _attend(rotate(q), rotate(k), v).reshape(2, 5, 8)
        return y @ p["out"]

    return fn, _zeros({"qkv": (3, 24), "out": (8, 3)}), numbers(2, 5, 3)


@model(8)
def gated():
    def fn(p, x):
        return (jax.nn.silu(x @ p["gate"]) * (x @ p["up"])) @ p["down"]

    return fn, _zeros({"gate": (5, 8), "up": (5, 8), "down": (8, 3)}), X


@model(8)
def gated_fused():
    def fn(p, x):
        gate, up = jnp.split(x @ p["both"], 2, axis=-1)
        return (jax.nn.gelu(gate) * up) @ p["down"]

    return fn, _zeros({"both": (5, 16), "down": (8, 3)}), X


class Block(nn.Module):
    """A transformer's layer."""

    @nn.compact
    def __call__(self, x):
        y = nn.LayerNorm()(x)
        x = x + nn.MultiHeadDotProductAttention(num_heads=2, deterministic=True)(y, y)
        return x + nn.Dense(8)(nn.gelu(nn.Dense(12)(nn.LayerNorm()(x))))


class Transformer(nn.Module):
    """Tied embeddings around layers, which may be stacked or rematerialised."""

    layers: str = "list"

    @nn.compact
    def __call__(self, tokens):
        embed = nn.Embed(7, 8)
        x = embed(tokens) + self.param("positions", nn.initializers.normal(), (5, 8))
        if self.layers == "scan":
            stack = nn.scan(
                _Step, variable_axes={"params": 0}, split_rngs={"params": True}, length=3
            )
            x, _ = stack()(x, None)
        else:
            block = nn.remat(Block) if self.layers == "remat" else Block
            for _ in range(2):
                x = block()(x)
        return embed.attend(nn.LayerNorm()(x))


class _Step(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        return Block()(x), None


@model(2, 2, 4, 4, 4, 4, 8, 12, 12)
def tied_transformer():
    return linen(Transformer(), TOKENS)


@model(2, 2, 4, 4, 4, 4, 8, 12, 12)
def remat_transformer():
    return linen(Transformer("remat"), TOKENS)


@model(2, 4, 4, 8, 12)
def scanned_transformer():
    return linen(Transformer("scan"), TOKENS)


@model(8)
def recurrent():
    """The hidden state is carried, so it is one group with both sides of its kernel."""
    return linen(nn.Sequential([nn.RNN(nn.GRUCell(8)), nn.Dense(2)]), numbers(2, 5, 3))


@model(8)
def while_loop():
    def fn(p, x):
        def more(carry):
            return (carry[0] < 3) & (jnp.sum(carry[1]) < 1e6)

        def step(carry):
            return carry[0] + 1, jnp.tanh(carry[1] @ p["hidden"]) + p["bias"]

        _, y = lax.while_loop(more, step, (0, x @ p["in"]))
        return y @ p["out"]

    params = {"in": (5, 8), "hidden": (8, 8), "bias": (8,), "out": (8, 2)}
    return fn, _zeros(params), X


@model(4, 8)
def branches():
    def fn(p, x, which):
        y = x @ p["in"]
        y = lax.cond(which, lambda y: jnp.tanh(y @ p["a"]), lambda y: y @ p["b"], y)
        return y @ p["out"]

    params = {"in": (5, 8), "a": (8, 4), "b": (8, 4), "out": (4, 2)}
    return fn, _zeros(params), X, jnp.array(True)


@model(4, 4, 4)
def padded_shortcut():
    """A ResNet's shortcut without parameters: half its channels are zeros."""

    def wiring(conv, x):
        x = conv("conv0", x, 4)
        y = conv("conv1", x, 12, strides=2)
        x = jnp.pad(x[:, ::2, ::2], ((0, 0), (0, 0), (0, 0), (4, 4)))
        return conv("conv2", nn.relu(x + y), 2)

    fn, params, x = wired(wiring)
    return fn, params, x


@model(3, 6, 8)
def experts():
    """A mixture of experts, all of them run; the experts are a batch axis."""

    def fn(p, x):
        gates = jax.nn.softmax(x @ p["router"])
        h = jax.nn.relu(jnp.einsum("be,nef->nbf", x, p["up"]))
        return jnp.einsum("nbf,nfe,bn->be", h, p["down"], gates) @ p["out"]

    params = {"router": (5, 3), "up": (3, 5, 8), "down": (3, 8, 6), "out": (6, 2)}
    return fn, _zeros(params), X


@model(6, 8)
def nnx_model():
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.conv = nnx.Conv(3, 8, (3, 3), rngs=rngs)
            self.norm = nnx.BatchNorm(8, rngs=rngs, use_running_average=True)
            self.hidden = nnx.Linear(8, 6, rngs=rngs)
            self.drop = nnx.Dropout(0.5, deterministic=True, rngs=rngs)
            self.out = nnx.Linear(6, 2, rngs=rngs)

        def __call__(self, x):
            x = nnx.relu(self.norm(self.conv(x))).mean((1, 2))
            return self.out(self.drop(nnx.relu(self.hidden(x))))

    graph, params, rest = nnx.split(Net(nnx.Rngs(0)), (nnx.Param, nnx.BatchStat), ...)
    return (lambda params, x: nnx.merge(graph, params, rest)(x)), params, IMAGE


@model(3, 4)
def several_axes():
    """Sums over two axes at once, and a product of axes in another order."""

    def fn(p, x):
        y = jnp.einsum("be,ehd->bdh", x, p["in"])
        return jnp.einsum("bdh,hdo->bo", y, p["mid"]) + y.reshape(4, 12) @ p["flat"]

    return fn, _zeros({"in": (5, 3, 4), "mid": (3, 4, 2), "flat": (12, 2)}), X
