"""What a training step costs with packed layers: `python -m experiments.bench.training`.

A perceptron 1024-4096-4096-1024 on batches of 512, one AdamW step (forward, backward
and update) with `nnx.Linear`, and with `SparseLinear` in 32x32 blocks that keep a
half, a quarter and a tenth. All take turns in one process; printed are medians of
ratios to the dense step of the same round, and the bytes that parameters, gradients
and moments take. Writes results/training.json.
"""

import argparse
import itertools
import statistics

import jax
import jax.numpy as jnp
import optax
from flax import nnx

import jaxsparse as js
from experiments.measurements import write
from jaxsparse.nn.nnx import SparseLinear
from jaxsparse.timing import interleave, ratios

WIDTHS, BATCH, DENSITIES = (1024, 4096, 4096, 1024), 512, (0.5, 0.25, 0.1)
BLOCK = js.Block(32, 32)


class MLP(nnx.Module):
    """Layers with ReLU between them, dense where `density` is None."""

    def __init__(self, density: float | None, rngs: nnx.Rngs):
        pairs = itertools.pairwise(WIDTHS)
        if density is None:
            layers = [nnx.Linear(*pair, rngs=rngs) for pair in pairs]
        else:
            layers = [SparseLinear(*pair, BLOCK, 1 - density, rngs=rngs) for pair in pairs]
        self.layers = nnx.List(layers)

    def __call__(self, x):
        for layer in self.layers[:-1]:
            x = nnx.relu(layer(x))
        return self.layers[-1](x)


class Run:
    """A jitted step that owns its model and gives the buffers on to the next call."""

    def __init__(self, density: float | None, x, y):
        model = MLP(density, nnx.Rngs(0))
        graph, self.params, rest = nnx.split(model, nnx.Param, ...)
        tx = optax.adamw(1e-3)
        self.state, self.batch = tx.init(self.params), (x, y)

        # What is not learned is an argument: a constant would be folded into the program.
        def step(params, state, rest, x, y):
            def loss(params):
                return jnp.mean((nnx.merge(graph, params, rest)(x) - y) ** 2)

            grads = jax.grad(loss)(params)
            updates, state = tx.update(grads, state, params)
            return optax.apply_updates(params, updates), state

        self.rest, self.step = rest, jax.jit(step, donate_argnums=(0, 1))

    def __call__(self):
        self.params, self.state = self.step(self.params, self.state, self.rest, *self.batch)
        return jax.tree.leaves(self.params)

    def learned_bytes(self) -> int:
        """Parameters, a gradient for each, and AdamW's two moments."""
        params = sum(leaf.nbytes for leaf in jax.tree.leaves(self.params))
        return 2 * params + sum(leaf.nbytes for leaf in jax.tree.leaves(self.state))


def main() -> None:
    """Measures, prints the table, writes results/training.json."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=30)
    rounds = parser.parse_args().rounds
    keys = jax.random.split(jax.random.key(0))
    x, y = (
        jax.random.normal(key, (BATCH, width)) for key, width in zip(keys, WIDTHS[::3], strict=True)
    )
    runs = {"dense": Run(None, x, y), "dense, again": Run(None, x, y)}
    runs |= {f"blocks 32x32, density {d}": Run(d, x, y) for d in DENSITIES}
    seconds = interleave(runs, rounds)
    relative = ratios(seconds, "dense")
    rows = {
        name: {
            "ms": 1e3 * statistics.median(seconds[name]),
            "speedup": 1 / relative[name],
            "bytes": run.learned_bytes(),
        }
        for name, run in runs.items()
    }
    for name, row in rows.items():
        print(f"{name:<28}{row['ms']:9.1f} ms{row['speedup']:7.2f}x{row['bytes']:14,} bytes")
    command = f"python -m experiments.bench.training --rounds {rounds}"
    path = write("training", {"command": command, "widths": WIDTHS, "batch": BATCH, "rows": rows})
    print("written:", path)


if __name__ == "__main__":
    main()
