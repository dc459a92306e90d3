"""A newcomer's walk with a transformer built like Gemma: einsum kernels, tied embedding."""

import functools

import jax
import jax.numpy as jnp
import optax
import pytest
from flax import nnx

import jaxsparse as js
from tests.walks import steps

VOCABULARY, LAYERS, WIDTH, HEADS, HEAD, HIDDEN = 48, 1, 32, 4, 16, 64


class RMSNorm(nnx.Module):
    def __init__(self, width):
        self.scale = nnx.Param(jnp.zeros(width))

    def __call__(self, x):
        power = jnp.mean(x * x, axis=-1, keepdims=True)
        return x * jax.lax.rsqrt(power + 1e-6) * (1 + self.scale[...])


class Einsum(nnx.Module):
    """A product with a kernel of any shape, the equation given where it is used."""

    def __init__(self, shape, rngs):
        self.w = nnx.Param(jax.random.normal(rngs.params(), shape) * WIDTH**-0.5)

    def __call__(self, equation, x):
        return jnp.einsum(equation, x, self.w[...])


def rotate(x, positions):
    """Rotary position embedding."""
    half = x.shape[-1] // 2
    angles = positions[:, None, None] / 10_000 ** (jnp.arange(half) / half)
    a, b = jnp.split(x, 2, axis=-1)
    sin, cos = jnp.sin(angles), jnp.cos(angles)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


class Attention(nnx.Module):
    """All query heads share two key heads."""

    def __init__(self, rngs):
        self.q_einsum = Einsum((HEADS, WIDTH, HEAD), rngs)
        self.kv_einsum = Einsum((2, 2, WIDTH, HEAD), rngs)
        self.attn_vec_einsum = Einsum((HEADS, HEAD, WIDTH), rngs)

    def __call__(self, x):
        places = jnp.arange(x.shape[1])
        query = rotate(self.q_einsum("BTD,NDH->BTNH", x), places) * HEAD**-0.5
        key, value = self.kv_einsum("BSD,CKDH->CBSKH", x)
        key = rotate(key, places)
        query = query.reshape(*query.shape[:2], 2, HEADS // 2, HEAD)
        logits = jnp.einsum("BTKGH,BSKH->BTKGS", query, key)
        causal = places[:, None] >= places
        weights = jax.nn.softmax(jnp.where(causal[:, None, None], logits, -1e30), axis=-1)
        encoded = jnp.einsum("BTKGS,BSKH->BTKGH", weights, value)
        encoded = encoded.reshape(*encoded.shape[:2], HEADS, HEAD)
        return self.attn_vec_einsum("BTNH,NHD->BTD", encoded)


class FeedForward(nnx.Module):
    def __init__(self, rngs):
        linear = functools.partial(nnx.Linear, use_bias=False, rngs=rngs)
        self.gate_proj, self.up_proj = linear(WIDTH, HIDDEN), linear(WIDTH, HIDDEN)
        self.down_proj = linear(HIDDEN, WIDTH)

    def __call__(self, x):
        return self.down_proj(nnx.gelu(self.gate_proj(x)) * self.up_proj(x))


class Block(nnx.Module):
    def __init__(self, rngs):
        self.pre_attention_norm, self.pre_ffw_norm = RMSNorm(WIDTH), RMSNorm(WIDTH)
        self.attn, self.mlp = Attention(rngs), FeedForward(rngs)

    def __call__(self, x):
        x = x + self.attn(self.pre_attention_norm(x))
        return x + self.mlp(self.pre_ffw_norm(x))


class Gemma(nnx.Module):
    def __init__(self, rngs):
        self.embedder = nnx.Param(jax.random.normal(rngs.params(), (VOCABULARY, WIDTH)) * 0.1)
        self.layers = nnx.List([Block(rngs) for _ in range(LAYERS)])
        self.final_norm = RMSNorm(WIDTH)

    def __call__(self, tokens):
        x = self.embedder[...][tokens] * WIDTH**0.5
        for layer in self.layers:
            x = layer(x)
        return jnp.dot(self.final_norm(x), self.embedder[...].T)


TOKENS = jax.random.randint(jax.random.key(1), (4, 8), 0, VOCABULARY)
RULES = [
    js.Rule(r".*/q_einsum/w", *steps.PATTERNS["nm"]),
    js.Rule(r".*/kv_einsum/w", *steps.PATTERNS["unstructured"]),
    js.Rule(r".*/attn_vec_einsum/w", *steps.PATTERNS["block"]),
    js.Rule(r".*/mlp/(gate|up)_proj/kernel", *steps.PATTERNS["nm"]),
    js.Rule(r".*/mlp/down_proj/kernel", js.Channel(-2), steps.HALF),
    js.Rule(r"embedder", *steps.PATTERNS["block"]),
]


@pytest.mark.slow
def test_gemma(tmp_path):
    graph, params = nnx.split(Gemma(nnx.Rngs(0)))

    def apply(params, tokens):
        return nnx.merge(graph, params)(tokens)

    def loss(params):
        logits = apply(params, TOKENS)[:, :-1]
        return optax.softmax_cross_entropy_with_integer_labels(logits, TOKENS[:, 1:]).mean()

    # Which axes of (N, D, H) are summed over? The message says what knows it.
    with pytest.raises(ValueError, match=r"js.read_axes\(rules, fn, params, \*inputs\)"):
        js.compute_masks(params, RULES)
    rules = js.read_axes(RULES, apply, params, TOKENS)
    axes = {rule.path.rpartition("/")[0].rpartition("/")[2]: rule for rule in rules}
    assert (axes["q_einsum"].in_axis, axes["q_einsum"].out_axis) == (1, (0, 2))
    assert (axes["attn_vec_einsum"].in_axis, axes["attn_vec_einsum"].out_axis) == ((0, 1), 2)
    # A table that is looked up and multiplied by, transposed: the product decides.
    assert (axes[""].in_axis, axes[""].out_axis) == (1, 0)

    params, masks = steps.train(loss, params, rules)
    report = steps.walk(apply, params, masks, rules, TOKENS, tmp_path / "gemma.safetensors")
    assert report.kept["layers/0/mlp/up_proj/kernel"][1].size == HIDDEN // 2
