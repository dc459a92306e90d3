"""What shrinking saves: `python -m experiments.bench.shrink`.

A transformer of 20 million parameters on 1,024 tokens and a residual CNN on 16 images
of 64 x 64. Masks leave half of every group of channels empty that the analysis finds:
neurons, heads, head dimensions, the residual stream, channels. The masked model and the
shrunk one run in turn in one process; printed are compiled FLOPs, medians of the
seconds, and how far the outputs are apart.
"""

import argparse
import statistics
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxsparse as js
from experiments.bench.transforms import BATCH, LAYERS, LENGTH, VOCABULARY, init_params
from experiments.measurements import write
from jaxsparse.timing import interleave, ratios

WIDTHS, IMAGES, SIZE = (64, 128, 256), 16, 64


def transformer(params: Mapping[str, Any], tokens: jax.Array) -> jax.Array:
    """Logits of the decoder of `experiments.bench.transforms`."""

    def norm(x):
        return x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + 1e-6)

    x = params["embed"]["kernel"][tokens]
    for layer in range(LAYERS):
        p = params[f"layer_{layer}"]
        q, k, v = jnp.split(norm(x) @ p["qkv"]["kernel"], 3, axis=-1)
        q, k, v = (y.reshape(*x.shape[:2], 8, -1) for y in (q, k, v))
        mixed = jax.nn.dot_product_attention(q, k, v, is_causal=True)
        x = x + mixed.reshape(*x.shape[:2], -1) @ p["out"]["kernel"]
        x = x + jax.nn.gelu(norm(x) @ p["up"]["kernel"]) @ p["down"]["kernel"]
    return norm(x) @ params["embed"]["kernel"].T


def init_cnn(key: jax.Array) -> dict[str, Any]:
    """Kernels and biases of `cnn`: two residual blocks at every width."""

    def conv(window, into, out):
        nonlocal key
        key, mine = jax.random.split(key)
        kernel = jax.random.normal(mine, (window, window, into, out)) * (window**2 * into) ** -0.5
        return {"kernel": kernel, "bias": jnp.full(out, 0.1)}

    params: dict[str, Any] = {"stem": conv(3, 3, WIDTHS[0])}
    into = WIDTHS[0]
    for stage, width in enumerate(WIDTHS):
        for block in range(2):
            params[f"stage_{stage}_{block}"] = {
                "one": conv(3, into, width),
                "two": conv(3, width, width),
            } | ({"shortcut": conv(1, into, width)} if into != width else {})
            into = width
    return params | {"head": {"kernel": jax.random.normal(key, (into, 10)) * into**-0.5}}


def cnn(params: Mapping[str, Any], images: jax.Array) -> jax.Array:
    """A residual network: a stem, three stages of two blocks, pooling, a classifier."""

    def conv(p, x, stride=1):
        y = jax.lax.conv_general_dilated(
            x, p["kernel"], (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return y + p["bias"]

    x = jax.nn.relu(conv(params["stem"], images, 2))
    for stage in range(len(WIDTHS)):
        for block in range(2):
            p = params[f"stage_{stage}_{block}"]
            stride = 2 if "shortcut" in p else 1
            y = conv(p["two"], jax.nn.relu(conv(p["one"], x, stride)))
            x = jax.nn.relu(y + (conv(p["shortcut"], x, stride) if "shortcut" in p else x))
    return x.mean((1, 2)) @ params["head"]["kernel"]


def half_empty(channels: js.graph.Channels, seed: int = 0) -> dict[str, np.ndarray]:
    """Masks that leave a random half of every group empty in all its leaves."""
    rng = np.random.default_rng(seed)
    masks = {path: np.ones(shape, bool) for path, shape in channels.shapes.items()}
    dead = {g.id: rng.permutation(g.size)[: g.size // 2] for g in channels.groups}
    for path, axes in channels.axes.items():
        for axis, pieces in enumerate(axes):
            for piece in pieces:
                for i, factor in enumerate(piece.factors):
                    if factor.group is not None:
                        chosen = [np.arange(f.size) for f in piece.factors]
                        chosen[i] = dead[factor.group]
                        np.moveaxis(masks[path], axis, 0)[piece.at(chosen).ravel()] = False
    return masks


def measure(fn: Callable[..., Any], params: Any, x: jax.Array, rounds: int) -> dict[str, Any]:
    """Returns sizes, FLOPs, seconds and the error of one model."""
    channels = js.graph.channels(fn, params, x)
    masks = half_empty(channels)
    small, shrunk, report = js.graph.shrink(fn, params, masks, x)
    masked = js.mask_params(params, masks)
    whole = jax.jit(fn).lower(masked, x).compile()
    half = jax.jit(shrunk).lower(small, x).compile()
    expected, actual = whole(masked, x), half(small, x)
    seconds = interleave(
        {"masked": lambda: whole(masked, x), "shrunk": lambda: half(small, x)}, rounds
    )
    flops = {
        "masked": (whole.cost_analysis() or {})["flops"],
        "shrunk": (half.cost_analysis() or {})["flops"],
    }
    return {
        "groups": len(channels.groups),
        "parameters": {"masked": report.before, "shrunk": report.after},
        "flops": flops,
        "flops ratio": round(flops["shrunk"] / flops["masked"], 4),
        "seconds": {name: round(statistics.median(times), 4) for name, times in seconds.items()},
        "seconds ratio": round(ratios(seconds, "masked")["shrunk"], 4),
        "largest error": float(jnp.max(jnp.abs(actual - expected)) / jnp.max(jnp.abs(expected))),
    }


def main() -> None:
    """Measures, prints the table, writes results/shrink.json."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    key = jax.random.key(0)
    tokens = jax.random.randint(key, (BATCH, LENGTH), 0, VOCABULARY)
    images = jax.random.normal(key, (IMAGES, SIZE, SIZE, 3))
    rows = {
        "transformer": measure(transformer, init_params(key), tokens, options.rounds),
        "residual CNN": measure(cnn, init_cnn(key), images, options.rounds),
    }
    print(f"{'model':<14}{'parameters':>12}{'FLOPs':>9}{'seconds':>9}{'error':>10}")
    for name, row in rows.items():
        share = row["parameters"]["shrunk"] / row["parameters"]["masked"]
        print(
            f"{name:<14}{share:>12.3f}{row['flops ratio']:>9.3f}{row['seconds ratio']:>9.3f}"
            f"{row['largest error']:>10.1e}"
        )
    command = f"python -m experiments.bench.shrink --rounds {options.rounds}"
    print("written:", write("shrink", {"command": command, "shrunk over masked": rows}))


if __name__ == "__main__":
    main()
