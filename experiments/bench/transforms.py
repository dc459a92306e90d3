"""What pruning adds to a training step: `python -m experiments.bench.transforms`.

A transformer of 20 million parameters, one AdamW step on 1,024 tokens, dense and
with the transforms, interleaved in one process. Printed are medians of ratios to
the dense step of the same round: between mask updates, and on a step that
chooses masks, with the selection of this library and with a full sort of every
leaf, the way of JaxPruner. "dense, again" is the dense step a second time: how far
its ratio is from 1 is the noise of the others.
"""

import argparse
import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp
import optax

import jaxsparse as js
from experiments.measurements import write
from jaxsparse.timing import interleave, ratios
from jaxsparse.top_k import Candidates, top_k_masks

LAYERS, WIDTH, HIDDEN, VOCABULARY, BATCH, LENGTH = 6, 512, 2048, 2048, 8, 128
PATTERNS = {"unstructured": js.Unstructured(), "block 4x16": js.Block(4, 16)}
SPARSITY = 0.8
NEVER = 10**9


def init_params(key: jax.Array) -> dict[str, Any]:
    """A decoder with fused QKV: 20.0 million parameters."""

    def dense(key, rows, columns):
        return {"kernel": jax.random.normal(key, (rows, columns)) * rows**-0.5}

    params: dict[str, Any] = {"embed": dense(key, VOCABULARY, WIDTH)}
    for layer in range(LAYERS):
        keys = jax.random.split(jax.random.fold_in(key, layer), 4)
        params[f"layer_{layer}"] = {
            "qkv": dense(keys[0], WIDTH, 3 * WIDTH),
            "out": dense(keys[1], WIDTH, WIDTH),
            "up": dense(keys[2], WIDTH, HIDDEN),
            "down": dense(keys[3], HIDDEN, WIDTH),
        }
    return params


def loss_fn(params: dict[str, Any], tokens: jax.Array) -> jax.Array:
    """Next-token cross entropy with a tied head."""
    x = params["embed"]["kernel"][tokens]
    for layer in range(LAYERS):
        p = params[f"layer_{layer}"]
        qkv = (_norm(x) @ p["qkv"]["kernel"]).reshape(*x.shape[:2], 3, 8, -1)
        mixed = jax.nn.dot_product_attention(*jnp.moveaxis(qkv, 2, 0), is_causal=True)
        x = x + mixed.reshape(x.shape) @ p["out"]["kernel"]
        x = x + jax.nn.gelu(_norm(x) @ p["up"]["kernel"]) @ p["down"]["kernel"]
    logits = _norm(x[:, :-1]) @ params["embed"]["kernel"].T
    return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]).mean()


def _norm(x: jax.Array) -> jax.Array:
    return x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + 1e-6)


def dense_step(tx):
    """The step that a user has before pruning."""

    def step(params, state, tokens):
        grads = jax.grad(loss_fn)(params, tokens)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return step


def sparse_step(tx):
    """The same with masks: the chain form, or `pruned`, which ignores masks=."""

    def step(params, state, tokens):
        masks = js.masks(state)
        grads = jax.grad(loss_fn)(js.mask_params(params, masks), tokens)
        updates, state = tx.update(grads, state, params, masks=masks)
        return optax.apply_updates(params, updates), state

    return step


def sorting_masks(params, masks):
    """Masks by the k-th of all sorted magnitudes of a leaf, ties and all."""
    found = {}
    for layer, leaves in params.items():
        if layer != "embed":
            for name, leaf in leaves.items():
                size = jnp.abs(leaf["kernel"])
                cut = jnp.sort(size.ravel())[int(SPARSITY * size.size)]
                found[f"{layer}/{name}/kernel"] = size >= cut
    return masks | found


def sort_step(tx):
    """A mask update as JaxPruner computes it, on top of the same sparse step."""
    inner = sparse_step(tx)

    def step(params, state, tokens):
        params, state = inner(params, state, tokens)
        masks = sorting_masks(params, js.masks(state))
        return js.mask_params(params, masks), state

    return step


class Run:
    """A jitted step that owns its state and gives the buffers on to the next call."""

    def __init__(self, tx, step, tokens):
        self.params = init_params(jax.random.key(0))
        self.state, self.tokens = tx.init(self.params), tokens
        self.step = jax.jit(step, donate_argnums=(0, 1))

    def __call__(self):
        self.params, self.state = self.step(self.params, self.state, self.tokens)
        return self.params


def transforms(pattern, schedule):
    """The chain form and the reference form with one pruner."""
    rules = [js.Rule(r"layer_.*/kernel", pattern, SPARSITY)]
    pruner = js.prune(rules, schedule=schedule)
    return {
        "chain": optax.chain(pruner, optax.adamw(1e-3), js.apply_masks()),
        "pruned": js.pruned(optax.adamw(1e-3), pruner),
    }


def selection_against_sort(rounds: int) -> dict[str, float]:
    """Exact masks of 4 M scores: seconds by selection and by a full sort."""
    scores = jax.random.normal(jax.random.key(0), (4096, 1024))
    kept = jnp.int32(scores.size // 10)
    select = jax.jit(lambda s: top_k_masks([Candidates(s, kept)])[0])
    sort = jax.jit(lambda s: s >= jnp.sort(s.ravel())[s.size - kept])
    seconds = interleave(
        {"sort": lambda: sort(scores), "selection": lambda: select(scores)}, rounds
    )
    faster = statistics.median(
        a / b for a, b in zip(seconds["sort"], seconds["selection"], strict=True)
    )
    return {n: statistics.median(t) for n, t in seconds.items()} | {"times faster": faster}


def main() -> None:
    """Measures, prints the table, writes results/transforms.json."""
    began = time.perf_counter()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=30)
    rounds = parser.parse_args().rounds
    tokens = jax.random.randint(jax.random.key(1), (BATCH, LENGTH), 0, VOCABULARY)
    dense = optax.adamw(1e-3)
    between, updating = js.one_shot(NEVER), js.constant()
    runs = {name: Run(dense, dense_step(dense), tokens) for name in ("dense", "dense, again")}
    for name, pattern in PATTERNS.items():
        for form, tx in transforms(pattern, between).items():
            runs[f"{name}, {form}, between updates"] = Run(tx, sparse_step(tx), tokens)
        tx = transforms(pattern, updating)["pruned"]
        runs[f"{name}, pruned, mask update"] = Run(tx, sparse_step(tx), tokens)
    tx = transforms(js.Unstructured(), between)["chain"]
    sorting = {
        "dense": runs["dense"],
        "unstructured, mask update by full sort": Run(tx, sort_step(tx), tokens),
    }

    seconds = interleave(runs, rounds)
    relative = ratios(seconds, "dense")
    relative |= ratios(interleave(sorting, max(3, rounds // 5)), "dense")
    result = {
        "command": f"python -m experiments.bench.transforms --rounds {rounds}",
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(runs["dense"].params)),
        "tokens per step": BATCH * LENGTH,
        "dense seconds per step": statistics.median(seconds["dense"]),
        "ratio to dense": relative,
        "masks of 4 M scores, seconds": selection_against_sort(rounds),
        "seconds": round(time.perf_counter() - began, 1),
    }
    width = max(map(len, relative))
    print(f"{'step':<{width}}  ratio to dense ({result['dense seconds per step']:.3f} s)")
    for name, ratio in relative.items():
        print(f"{name:<{width}}  {ratio:.3f}")
    print("masks of 4 M scores, seconds:", result["masks of 4 M scores, seconds"])
    print("written:", write("transforms", result))


if __name__ == "__main__":
    main()
