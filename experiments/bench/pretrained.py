"""What permutations recover on trained weights: `python -m experiments.bench.pretrained`.

A BERT (all-MiniLM-L6-v2) and EfficientNet-lite0, fetched once. Kernels that ASP takes
(16 divides the inputs, 8 the outputs) get 2:4, as they are and with channels permuted;
every group of channels is a line of the table. The function must stay as it was.
"""

import argparse
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import jaxsparse as js
from experiments import huggingface, permutation, pretrained
from experiments.data.download import DownloadError
from experiments.measurements import write


def measure(
    fn: Callable[..., Any], params: Any, inputs: tuple[Any, ...], **options: Any
) -> dict[str, Any]:
    """Permutes a network for 2:4; returns the groups, the seconds and the change of outputs."""
    rules = js.graph.asp_rules(params, fn=fn, inputs=inputs)
    before = np.asarray(fn(params, *inputs))
    start = time.perf_counter()
    permuted, report = js.graph.permute(fn, params, *inputs, rules=rules, **options)
    seconds = time.perf_counter() - start
    after = np.asarray(fn(permuted, *inputs))
    return {
        "eligible kernels": len(rules),
        "seconds": round(seconds, 1),
        "largest change of an output, relative to the largest output": float(
            np.abs(after - before).max() / np.abs(before).max()
        ),
        "groups": permutation.rows(report),
        "leaves": [
            {
                "path": leaf.path,
                "plain": leaf.plain / leaf.total,
                "permuted": leaf.retained / leaf.total,
            }
            for leaf in report.leaves
        ],
    }


def main() -> None:
    """Measures, prints the tables, writes results/pretrained.json."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--escapes", type=int, default=100)
    options = parser.parse_args()
    tokens = jnp.asarray(np.random.default_rng(0).integers(1000, 30000, (2, 16)))
    images = jax.random.normal(jax.random.key(0), (2, 224, 224, 3))
    try:
        minilm, efficientnet = pretrained.minilm(), pretrained.efficientnet_lite0()
    except DownloadError as error:
        sys.exit(f"error: {error}")
    bert, weights = nnx.split(huggingface.load(minilm))
    networks = {
        "all-MiniLM-L6-v2": (
            lambda params, *inputs: nnx.merge(bert, params)(*inputs),
            weights,
            (tokens, jnp.ones_like(tokens)),
        ),
        "EfficientNet-lite0": (
            pretrained.efficientnet,
            efficientnet,
            (images,),
        ),
    }
    result: dict[str, Any] = {
        "command": f"python -m experiments.bench.pretrained --escapes {options.escapes}"
    }
    for name, (fn, params, inputs) in networks.items():
        found = measure(jax.jit(fn), params, inputs, escapes=options.escapes)
        result[name] = found
        change = found["largest change of an output, relative to the largest output"]
        print(f"\n{name}: {found['seconds']} s, outputs changed by {change:.1e}\n")
        print(permutation.table(found["groups"]))
        for leaf in found["leaves"]:
            print(f"{leaf['path']}: 2:4 keeps {leaf['plain']:.2%}, {leaf['permuted']:.2%} permuted")
    print("written:", write("pretrained", result))


if __name__ == "__main__":
    main()
