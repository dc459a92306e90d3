"""Transformers in the layouts that people deploy, small and with random weights.

`ARCHITECTURES[name]()` returns an Architecture: a function of parameters by the paths that the
published models have, its inputs, and the heads and neurons that have to be found in it.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from graph_models import numbers, randomize
from jax import lax

WIDTH, HEADS, SIZE, NEURONS, LAYERS, LENGTH = 16, 4, 4, 24, 2, 6


@dataclasses.dataclass(frozen=True)
class Architecture:
    """A function of (params, *inputs), and by name and kind how many units each group has."""

    fn: Callable[..., Any]
    params: Any
    inputs: tuple[Any, ...]
    units: dict[tuple[str, str], int]


ARCHITECTURES: dict[str, Callable[[], Architecture]] = {}


def architecture(build):
    """Enters a builder of (fn, shapes of the parameters, inputs, units)."""

    def made():
        fn, shapes, inputs, units = build()
        params: dict[str, Any] = {}
        for path, shape in shapes.items():
            *parents, last = path.split("/")
            node = params
            for parent in parents:
                node = node.setdefault(parent, {})
            node[last] = jnp.zeros(shape)
        return Architecture(fn, randomize(params), inputs, units)

    ARCHITECTURES[build.__name__] = made
    return build


TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, 20, (2, LENGTH)))
MASK = jnp.ones((2, LENGTH), bool).at[1, 4:].set(False)
IMAGES = numbers(2, 8, 8, 3)


def linear(path, into=WIDTH, out=WIDTH, bias=True):
    """Shapes of a linear layer."""
    return {f"{path}/kernel": (into, out)} | ({f"{path}/bias": (out,)} if bias else {})


def scaled(path, width=WIDTH):
    """Shapes of a norm."""
    return {f"{path}/scale": (width,), f"{path}/bias": (width,)}


def at(params, path):
    for part in path.split("/"):
        params = params[part]
    return params


def dense(params, path, x):
    layer = at(params, path)
    return x @ layer["kernel"] + layer.get("bias", 0.0)


def norm(params, path, x):
    x = x - x.mean(-1, keepdims=True)
    x = x * lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + 1e-6)
    return x * at(params, path)["scale"] + at(params, path)["bias"]


def heads(x, size=SIZE):
    return x.reshape(*x.shape[:-1], -1, size)


def attend(q, k, v, bias: Any = 0.0, head_mask=None):
    """Of (..., length, heads, size); the heads in one axis."""
    weights = jax.nn.softmax(jnp.einsum("...thd,...shd->...hts", q * SIZE**-0.5, k) + bias)
    if head_mask is not None:
        weights = weights * head_mask[None, :, None, None]
    mixed = jnp.einsum("...hts,...shd->...thd", weights, v)
    return mixed.reshape(*mixed.shape[:-2], -1)


def padding():
    return jnp.where(MASK[:, None, None, :], 0.0, -1e9)


def layered(parts):
    """Units of every layer: heads and neurons by the names that they have there."""
    sizes = {"heads": HEADS, "neurons": NEURONS}
    return {(n.format(i), kind): sizes[kind] for i in range(LAYERS) for n, kind in parts}


def bert_like(prefix, positions, head_mask):
    """BERT and RoBERTa: post-norm, and a mask of ones for all heads as Hugging Face passes it."""
    shapes = {"embeddings/word/embedding": (20, WIDTH), "embeddings/position/embedding": (9, WIDTH)}
    shapes |= {"embeddings/token_type/embedding": (2, WIDTH)} | scaled("embeddings/LayerNorm")
    names = [f"{prefix}/{i}" for i in range(LAYERS)]
    for n in names:
        for part in "query", "key", "value":
            shapes |= linear(f"{n}/attention/self/{part}")
        shapes |= linear(f"{n}/attention/output/dense") | scaled(f"{n}/attention/output/LayerNorm")
        shapes |= linear(f"{n}/intermediate/dense", WIDTH, NEURONS)
        shapes |= linear(f"{n}/output/dense", NEURONS) | scaled(f"{n}/output/LayerNorm")
    shapes |= linear("pooler/dense") | linear("classifier", WIDTH, 2)

    def fn(params, ids):
        tables = params["embeddings"]
        x = tables["word"]["embedding"][ids] + tables["position"]["embedding"][positions(ids)]
        x = norm(params, "embeddings/LayerNorm", x + tables["token_type"]["embedding"][0])
        ones = jnp.ones((LAYERS, HEADS)) if head_mask else [None] * LAYERS
        for i, n in enumerate(names):
            q, k, v = (
                heads(dense(params, f"{n}/attention/self/{part}", x))
                for part in ("query", "key", "value")
            )
            y = dense(params, f"{n}/attention/output/dense", attend(q, k, v, padding(), ones[i]))
            x = norm(params, f"{n}/attention/output/LayerNorm", x + y)
            y = jax.nn.gelu(dense(params, f"{n}/intermediate/dense", x), approximate=False)
            x = norm(params, f"{n}/output/LayerNorm", x + dense(params, f"{n}/output/dense", y))
        return dense(params, "classifier", jnp.tanh(dense(params, "pooler/dense", x[:, 0])))

    units = layered([(f"{prefix}/{{}}/attention", "heads"), (f"{prefix}/{{}}", "neurons")])
    pooled = ("pooler/dense/kernel, classifier/kernel", "neurons")
    return fn, shapes, (TOKENS,), units | {pooled: WIDTH}


@architecture
def bert():
    return bert_like("encoder/layer", lambda ids: jnp.arange(ids.shape[1]), True)


@architecture
def roberta():
    return bert_like("encoder/layer", lambda ids: jnp.cumsum(ids != 1, 1) * (ids != 1) + 1, False)


@architecture
def distilbert():
    shapes = {"word/embedding": (20, WIDTH), "position/embedding": (9, WIDTH)}
    for i in range(LAYERS):
        n = f"layer/{i}"
        for part in "q_lin", "k_lin", "v_lin", "out_lin":
            shapes |= linear(f"{n}/attention/{part}")
        shapes |= scaled(f"{n}/sa_layer_norm") | scaled(f"{n}/output_layer_norm")
        shapes |= linear(f"{n}/ffn/lin1", WIDTH, NEURONS) | linear(f"{n}/ffn/lin2", NEURONS)

    def fn(params, ids):
        x = params["word"]["embedding"][ids] + params["position"]["embedding"][: ids.shape[1]]
        for i in range(LAYERS):
            n = f"layer/{i}"
            q, k, v = (heads(dense(params, f"{n}/attention/{part}_lin", x)) for part in "qkv")
            y = dense(params, f"{n}/attention/out_lin", attend(q, k, v, padding()))
            x = norm(params, f"{n}/sa_layer_norm", x + y)
            y = dense(params, f"{n}/ffn/lin2", jax.nn.gelu(dense(params, f"{n}/ffn/lin1", x)))
            x = norm(params, f"{n}/output_layer_norm", x + y)
        return x

    return (
        fn,
        shapes,
        (TOKENS,),
        layered([("layer/{}/attention", "heads"), ("layer/{}/ffn", "neurons")]),
    )


@architecture
def mobilebert():
    """A bottleneck around each layer, norms that only scale, several feed-forward parts."""
    wide, stacked = 24, ("ffn/0", "ffn/1")
    shapes = {"word/embedding": (20, wide)}
    for i in range(LAYERS):
        n = f"layer/{i}"
        for part in "input", "attention":
            shapes |= linear(f"{n}/bottleneck/{part}/dense", wide)
            shapes |= scaled(f"{n}/bottleneck/{part}/LayerNorm")
        shapes |= linear(f"{n}/attention/self/query") | linear(f"{n}/attention/self/key")
        shapes |= linear(f"{n}/attention/self/value", wide) | linear(f"{n}/attention/output/dense")
        shapes |= scaled(f"{n}/attention/output/LayerNorm")
        for part in (*stacked, "last"):
            shapes |= linear(f"{n}/{part}/intermediate", WIDTH, NEURONS)
            shapes |= linear(f"{n}/{part}/output", NEURONS) | scaled(f"{n}/{part}/LayerNorm")
        shapes |= linear(f"{n}/output/bottleneck/dense", WIDTH, wide)
        shapes |= scaled(f"{n}/output/bottleneck/LayerNorm", wide)

    def affine(params, path, x):
        return x * at(params, path)["scale"] + at(params, path)["bias"]

    def fn(params, ids):
        x = params["word"]["embedding"][ids]
        for i in range(LAYERS):
            n = f"layer/{i}"
            inner, shared = (
                affine(
                    params,
                    f"{n}/bottleneck/{part}/LayerNorm",
                    dense(params, f"{n}/bottleneck/{part}/dense", x),
                )
                for part in ("input", "attention")
            )
            q, k = (
                heads(dense(params, f"{n}/attention/self/{p}", shared)) for p in ("query", "key")
            )
            v = heads(dense(params, f"{n}/attention/self/value", x))
            y = dense(params, f"{n}/attention/output/dense", attend(q, k, v, padding()))
            y = affine(params, f"{n}/attention/output/LayerNorm", y + inner)
            for part in (*stacked, "last"):
                z = jax.nn.relu(dense(params, f"{n}/{part}/intermediate", y))
                y = affine(
                    params, f"{n}/{part}/LayerNorm", dense(params, f"{n}/{part}/output", z) + y
                )
            y = dense(params, f"{n}/output/bottleneck/dense", y)
            x = affine(params, f"{n}/output/bottleneck/LayerNorm", y + x)
        return x

    parts = [(f"layer/{{}}/{part}", "neurons") for part in (*stacked, "last")]
    # Queries and keys read a bottleneck of their own.
    narrow = {(f"layer/{i}", "neurons"): WIDTH for i in range(LAYERS)}
    return fn, shapes, (TOKENS,), layered([("layer/{}/attention", "heads"), *parts]) | narrow


def pre_norm(params, n, x, names, activation, bias: Any = 0.0):
    """A layer of ViT, CLIP and Wav2Vec2: x + part(norm(x))."""
    y = norm(params, f"{n}/{names['norm1']}", x)
    q, k, v = (heads(dense(params, f"{n}/{names[part]}", y)) for part in ("q", "k", "v"))
    x = x + dense(params, f"{n}/{names['o']}", attend(q, k, v, bias))
    y = norm(params, f"{n}/{names['norm2']}", x)
    return x + dense(
        params, f"{n}/{names['out']}", activation(dense(params, f"{n}/{names['in']}", y))
    )


def pre_norm_shapes(n, names):
    shapes = scaled(f"{n}/{names['norm1']}") | scaled(f"{n}/{names['norm2']}")
    for part in "q", "k", "v", "o":
        shapes |= linear(f"{n}/{names[part]}")
    return (
        shapes
        | linear(f"{n}/{names['in']}", WIDTH, NEURONS)
        | linear(f"{n}/{names['out']}", NEURONS)
    )


VIT = {
    part: f"attention/attention/{name}"
    for part, name in (("q", "query"), ("k", "key"), ("v", "value"))
}
VIT |= {"o": "attention/output/dense", "in": "intermediate/dense", "out": "output/dense"}
VIT |= {"norm1": "layernorm_before", "norm2": "layernorm_after"}
CLIP = {part: f"self_attn/{part}_proj" for part in "qkv"} | {"o": "self_attn/out_proj"}
CLIP |= {"in": "mlp/fc1", "out": "mlp/fc2", "norm1": "layer_norm1", "norm2": "layer_norm2"}
WAV2VEC2 = {part: f"attention/{part}_proj" for part in "qkv"} | {"o": "attention/out_proj"}
WAV2VEC2 |= {"in": "feed_forward/intermediate_dense", "out": "feed_forward/output_dense"}
WAV2VEC2 |= {"norm1": "layer_norm", "norm2": "final_layer_norm"}


def convolve(params, path, x, stride, padding="VALID", groups=1):
    """Along one or two axes, channels last."""
    layer = at(params, path)
    letters = "HW"[: x.ndim - 2]
    form = (f"N{letters}C", f"{letters}IO", f"N{letters}C")
    strides = (stride,) * len(letters)
    y = lax.conv_general_dilated(
        x, layer["kernel"], strides, padding, dimension_numbers=form, feature_group_count=groups
    )
    return y + layer.get("bias", 0.0)


def patches(params, path, x, token):
    x = convolve(params, path, x, 4)
    x = x.reshape(x.shape[0], -1, x.shape[-1])
    return jnp.concatenate([jnp.broadcast_to(token, (x.shape[0], 1, WIDTH)), x], 1)


@architecture
def vit():
    shapes = {"cls_token": (1, 1, WIDTH), "position": (1, 5, WIDTH)} | scaled("layernorm")
    shapes |= {"projection/kernel": (4, 4, 3, WIDTH), "projection/bias": (WIDTH,)}
    shapes |= linear("classifier", WIDTH, 3)
    for i in range(LAYERS):
        shapes |= pre_norm_shapes(f"layer/{i}", VIT)

    def fn(params, images):
        x = patches(params, "projection", images, params["cls_token"]) + params["position"]
        for i in range(LAYERS):
            x = pre_norm(params, f"layer/{i}", x, VIT, jax.nn.gelu)
        return dense(params, "classifier", norm(params, "layernorm", x)[:, 0])

    return (
        fn,
        shapes,
        (IMAGES,),
        layered([("layer/{}/attention", "heads"), ("layer/{}", "neurons")]),
    )


@architecture
def clip_vision():
    shapes = {"class": (WIDTH,), "position/embedding": (5, WIDTH)} | scaled("pre_layernorm")
    shapes |= {"patch/kernel": (4, 4, 3, WIDTH)} | scaled("post_layernorm")
    shapes |= linear("visual_projection", WIDTH, 8, bias=False)
    for i in range(LAYERS):
        shapes |= pre_norm_shapes(f"layers/{i}", CLIP)

    def fn(params, images):
        x = patches(params, "patch", images, params["class"]) + params["position"]["embedding"]
        x = norm(params, "pre_layernorm", x)
        for i in range(LAYERS):
            x = pre_norm(params, f"layers/{i}", x, CLIP, lambda y: y * jax.nn.sigmoid(1.702 * y))
        return dense(params, "visual_projection", norm(params, "post_layernorm", x[:, 0]))

    return (
        fn,
        shapes,
        (IMAGES,),
        layered([("layers/{}/self_attn", "heads"), ("layers/{}/mlp", "neurons")]),
    )


@architecture
def wav2vec2():
    """Convolutions over the wave, a grouped one for positions, then the encoder."""
    shapes = {"conv/0/kernel": (4, 1, 12), **scaled("conv/0/layer_norm", 12)}
    shapes |= {"conv/1/kernel": (3, 12, 12), **scaled("projection/layer_norm", 12)}
    shapes |= linear("projection", 12) | scaled("layer_norm")
    shapes |= {"pos_conv/kernel": (3, WIDTH // 2, WIDTH), "pos_conv/bias": (WIDTH,)}
    for i in range(LAYERS):
        shapes |= pre_norm_shapes(f"layers/{i}", WAV2VEC2)

    def fn(params, wave):
        x = convolve(params, "conv/0", wave[..., None], 2)
        mean = x.mean(1, keepdims=True)  # a group norm of groups of one channel
        x = (x - mean) * lax.rsqrt(jnp.square(x - mean).mean(1, keepdims=True) + 1e-6)
        scale = at(params, "conv/0/layer_norm")
        x = jax.nn.gelu(x * scale["scale"] + scale["bias"])
        x = jax.nn.gelu(convolve(params, "conv/1", x, 2))
        x = dense(params, "projection", norm(params, "projection/layer_norm", x))
        x = x + jax.nn.gelu(convolve(params, "pos_conv", x, 1, "SAME", groups=2))
        for i in range(LAYERS):
            x = pre_norm(params, f"layers/{i}", x, WAV2VEC2, jax.nn.gelu)
        return norm(params, "layer_norm", x)

    units = layered([("layers/{}/attention", "heads"), ("layers/{}/feed_forward", "neurons")])
    return (
        fn,
        shapes,
        (numbers(2, 30),),
        units
        | {
            ("conv", "channels"): 12,
        },
    )


@architecture
def swin():
    """Windows, shifted in every second layer, and half as many patches in the second stage."""
    sizes = (WIDTH, 2 * WIDTH)
    shapes = {"patch/kernel": (2, 2, 3, WIDTH), "patch/bias": (WIDTH,)}
    shapes |= scaled("merge/norm", 4 * WIDTH) | linear(
        "merge/reduction", 4 * WIDTH, 2 * WIDTH, False
    )
    units = {}
    for stage, width in enumerate(sizes):
        for i in range(LAYERS):
            n = f"layers/{stage}/blocks/{i}"
            shapes |= scaled(f"{n}/layernorm_before", width) | scaled(f"{n}/layernorm_after", width)
            for part in "query", "key", "value":
                shapes |= linear(f"{n}/attention/self/{part}", width, width)
            shapes |= {f"{n}/attention/self/relative_position": (9, width // SIZE)}
            shapes |= linear(f"{n}/attention/output/dense", width, width)
            shapes |= linear(f"{n}/intermediate/dense", width, NEURONS)
            shapes |= linear(f"{n}/output/dense", NEURONS, width)
            units |= {(f"{n}/attention", "heads"): width // SIZE, (n, "neurons"): NEURONS}

    def windows(x):
        b, h, w, c = x.shape
        x = x.reshape(b, h // 2, 2, w // 2, 2, c).transpose(0, 1, 3, 2, 4, 5)
        return x.reshape(-1, 4, c)

    def together(x, shape):
        b, h, w, c = shape
        x = x.reshape(b, h // 2, w // 2, 2, 2, c).transpose(0, 1, 3, 2, 4, 5)
        return x.reshape(shape)

    places = np.stack(np.meshgrid(range(2), range(2), indexing="ij")).reshape(2, -1)
    apart = places[:, :, None] - places[:, None] + 1
    index = apart[0] * 3 + apart[1]

    def fn(params, images):
        x = convolve(params, "patch", images, 2)
        for stage in range(len(sizes)):
            if stage:
                x = jnp.concatenate([x[:, i::2, j::2] for j in (0, 1) for i in (0, 1)], -1)
                x = dense(params, "merge/reduction", norm(params, "merge/norm", x))
            for i in range(LAYERS):
                n = f"layers/{stage}/blocks/{i}"
                shift = i % 2
                y = norm(params, f"{n}/layernorm_before", x)
                y = windows(jnp.roll(y, (-shift, -shift), (1, 2)))
                q, k, v = (
                    heads(dense(params, f"{n}/attention/self/{part}", y))
                    for part in ("query", "key", "value")
                )
                table = at(params, f"{n}/attention/self")["relative_position"]
                bias = table[index.reshape(-1)].reshape(4, 4, -1).transpose(2, 0, 1)
                y = dense(params, f"{n}/attention/output/dense", attend(q, k, v, bias))
                x = x + jnp.roll(together(y, x.shape), (shift, shift), (1, 2))
                y = dense(
                    params, f"{n}/intermediate/dense", norm(params, f"{n}/layernorm_after", x)
                )
                x = x + dense(params, f"{n}/output/dense", jax.nn.gelu(y))
        return x.mean((1, 2))

    return fn, shapes, (IMAGES,), units


@architecture
def gpt2():
    """Queries, keys and values from one kernel; a causal mask; the head is the embedding."""
    shapes = {"wte/embedding": (20, WIDTH), "wpe/embedding": (9, WIDTH)} | scaled("ln_f")
    for i in range(LAYERS):
        n = f"h/{i}"
        shapes |= scaled(f"{n}/ln_1") | scaled(f"{n}/ln_2")
        shapes |= linear(f"{n}/attn/c_attn", WIDTH, 3 * WIDTH) | linear(f"{n}/attn/c_proj")
        shapes |= linear(f"{n}/mlp/c_fc", WIDTH, NEURONS) | linear(f"{n}/mlp/c_proj", NEURONS)

    def fn(params, ids):
        words = params["wte"]["embedding"]
        x = words[ids] + params["wpe"]["embedding"][jnp.arange(ids.shape[1])]
        causal = jnp.where(np.tril(np.ones((ids.shape[1],) * 2, bool)), 0.0, -1e9)
        for i in range(LAYERS):
            n = f"h/{i}"
            qkv = dense(params, f"{n}/attn/c_attn", norm(params, f"{n}/ln_1", x))
            q, k, v = map(heads, jnp.split(qkv, 3, axis=-1))
            x = x + dense(params, f"{n}/attn/c_proj", attend(q, k, v, causal))
            y = jax.nn.gelu(dense(params, f"{n}/mlp/c_fc", norm(params, f"{n}/ln_2", x)))
            x = x + dense(params, f"{n}/mlp/c_proj", y)
        return norm(params, "ln_f", x) @ words.T

    return fn, shapes, (TOKENS,), layered([("h/{}/attn", "heads"), ("h/{}/mlp", "neurons")])


@architecture
def llama():
    """Two query heads for every key head, rotary positions, gated neurons, no bias."""
    shapes = {"embed/embedding": (20, WIDTH), "norm/scale": (WIDTH,)}
    for i in range(LAYERS):
        n = f"layers/{i}"
        shapes |= {f"{n}/{part}/scale": (WIDTH,) for part in ("input_norm", "post_norm")}
        for part, out in ("q_proj", WIDTH), ("k_proj", WIDTH // 2), ("v_proj", WIDTH // 2):
            shapes |= linear(f"{n}/self_attn/{part}", WIDTH, out, False)
        shapes |= linear(f"{n}/self_attn/o_proj", WIDTH, WIDTH, False)
        for part in "gate_proj", "up_proj":
            shapes |= linear(f"{n}/mlp/{part}", WIDTH, NEURONS, False)
        shapes |= linear(f"{n}/mlp/down_proj", NEURONS, WIDTH, False)

    def rms(params, path, x):
        scale = at(params, path)["scale"]
        return x * lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + 1e-6) * scale

    def turned(x):
        """Rotary positions, of (batch, length, heads, size)."""
        angles = np.arange(LENGTH)[:, None] / 100.0 ** (np.arange(SIZE // 2) / (SIZE // 2))
        cos, sin = (jnp.asarray(f(angles), x.dtype)[:, None] for f in (np.cos, np.sin))
        a, b = jnp.split(x, 2, axis=-1)
        return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)

    def fn(params, ids):
        x = params["embed"]["embedding"][ids]
        causal = jnp.where(np.tril(np.ones((LENGTH, LENGTH), bool)), 0.0, -1e9)
        for i in range(LAYERS):
            n = f"layers/{i}"
            y = rms(params, f"{n}/input_norm", x)
            q, k, v = (heads(dense(params, f"{n}/self_attn/{part}_proj", y)) for part in "qkv")
            k, v = jnp.repeat(turned(k), 2, axis=2), jnp.repeat(v, 2, axis=2)
            x = x + dense(params, f"{n}/self_attn/o_proj", attend(turned(q), k, v, causal))
            y = rms(params, f"{n}/post_norm", x)
            gate, up = (dense(params, f"{n}/mlp/{part}_proj", y) for part in ("gate", "up"))
            x = x + dense(params, f"{n}/mlp/down_proj", jax.nn.silu(gate) * up)
        return rms(params, "norm", x)

    units = layered([("layers/{}/self_attn", "heads"), ("layers/{}/mlp", "neurons")])
    units = {key: HEADS // 2 if key[1] == "heads" else size for key, size in units.items()}
    return fn, shapes, (TOKENS,), units
