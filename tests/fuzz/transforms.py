"""Random pruning runs of five steps, held to the promises that every run makes.

    python -m tests.fuzz.transforms --configs 500 --seed 0

A configuration is a pattern, score, schedule, regrowth, distribution, wrapper, dtype
and mesh, drawn by (seed, number). Each is trained for five steps and checked:

- the number of groups kept is the number asked for, also between begin and end;
- what is masked is +0;
- one compilation serves every step;
- a state that went through flax's bytes or an orbax checkpoint goes on bit for bit;
- eight devices choose the masks that one does.

A configuration that fails prints the command that runs it alone.
"""

import argparse
import os
import random
import re
import sys
import tempfile
import time
import traceback
from typing import Any, NamedTuple

if "jax" not in sys.modules:  # flags are read when the backend starts
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    os.environ["XLA_FLAGS"] = " ".join(
        [
            os.environ.get("XLA_FLAGS", ""),
            "--xla_force_host_platform_device_count=8",
            "--xla_backend_optimization_level=0",
            "--xla_llvm_disable_expensive_passes=true",
        ]
    )

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
from flax import serialization
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import jaxsparse as js
from jaxsparse.patterns.nm import NM
from jaxsparse.patterns.rules import resolve
from jaxsparse.pruning.regrowth import DropAndGrow
from jaxsparse.trees import leaves_by_path, replace_by_path

STEPS, RESUME = 5, 3
SHAPES = {"dense/kernel": (16, 32), "dense/bias": (32,), "stack/kernel": (2, 32, 16)}
DTYPES = {"f32": jnp.float32, "bf16": jnp.bfloat16, "f16": jnp.float16}
PATTERNS = [
    js.Unstructured(),
    js.Block(4, 8),
    js.Block(4, 4, reduce="l2"),
    js.Block(2, 8, reduce="max"),
    js.Block(5, 7, pad=True),
    js.Channel(-1),
    js.Channel(-2, reduce="sum"),
    js.NM(2, 4),
    js.NM(1, 4),
    js.NM(2, 4, method="best"),
    js.NM(2, 4, method="greedy"),
]
SCORES = {
    "magnitude": js.magnitude,
    "random": js.random,
    "gradient": js.gradient,
    "saliency": js.saliency,
    "saliency_momentum": js.saliency_momentum,
    "movement": js.movement,
}
REGROWTHS = {
    "none": lambda: None,
    "random": js.regrow_random,
    "gradient": js.regrow_gradient,
    "straight_through": js.straight_through,
    "straight_through_masked": lambda: js.straight_through("masked"),
}
DISTRIBUTIONS = {"uniform": js.uniform, "erk": js.erk, "global": js.global_}
EXACT = [
    "pruned",
    "multi_steps",
    "apply_if_finite",
    "inject_hyperparams",
    "partition",
    "schedule_free",
    "lookahead",
    "apply_masks",
]


class Config(NamedTuple):
    """One run; `str` is what a failure shows."""

    pattern: js.Pattern
    score: str
    schedule: js.Schedule | float
    threshold: bool
    regrowth: str
    distribution: str
    sparsity: float
    wrapper: str
    dtype: str
    mesh: str
    seed: int


def draw(seed: int, number: int) -> Config:
    """The configuration of that number; pairs that are refused are not drawn."""
    rng = random.Random(f"{seed}:{number}")
    pattern = rng.choice(PATTERNS)
    fixed = isinstance(pattern, NM)
    regrowth = rng.choice([r for r in REGROWTHS if not (fixed and r in ("random", "gradient"))])
    threshold = not fixed and regrowth.startswith("straight") and rng.random() < 0.3
    sizes = {js.Block: True}.get(type(pattern), False) or isinstance(pattern, js.Unstructured)
    free = not fixed and not threshold
    distribution = rng.choice(["uniform", "erk"] + ["global"] * sizes) if free else "uniform"
    sparsity = rng.choice([0.25, 0.5, 0.8, 0.9]) if not fixed else pattern.max_sparsity
    begin, every = rng.randrange(2), rng.choice([1, 2])
    end = rng.randrange(begin + 1, STEPS)
    initial = rng.choice([0.0, 0.2])
    schedule: Any = rng.choice(
        [
            js.one_shot(begin),
            js.constant(begin=begin, end=end, every=every),
            js.cubic(initial, begin=begin, end=end, every=every),
            js.linear(initial, begin=begin, end=end, every=every),
            js.cosine(initial, begin=begin, end=end, every=every),
            js.exponential(initial, begin=begin, end=end, every=every),
            js.iterative(2, begin=begin, every=every),
            sparsity if free and distribution != "erk" else js.one_shot(),
        ]
    )
    raw = regrowth.startswith("straight") or threshold
    wrapper = "chain" if raw else rng.choice(EXACT)
    if isinstance(schedule, float) and wrapper == "partition" and distribution == "global":
        wrapper = "pruned"
    if wrapper == "partition" and distribution != "uniform":
        wrapper = "pruned"  # each half would share its own budget
    return Config(
        pattern,
        rng.choice(list(SCORES)) if not threshold else "movement",
        schedule,
        threshold,
        regrowth,
        distribution,
        sparsity,
        wrapper,
        rng.choice(list(DTYPES)),
        rng.choice(["one", "one", "auto", "explicit"]),
        rng.randrange(1000),
    )


def rules_of(config: Config, paths: str = ".*/kernel") -> list[js.Rule]:
    """One rule for each leaf whose path matches; the stack is one of two kernels."""
    rules = [
        js.Rule("dense/kernel", config.pattern),
        js.Rule("stack/kernel", config.pattern, batch_axis=0),
    ]
    return [rule for rule in rules if re.fullmatch(paths, rule.path)]


def pruner_of(config: Config, paths: str = ".*/kernel", make: Any = js.prune) -> Any:
    given = isinstance(config.schedule, float)
    schedule: Any = config.schedule
    if config.threshold:
        schedule = js.importance_threshold(begin=1, end=3)
    return make(
        rules_of(config, paths),
        score=SCORES[config.score](),
        schedule=schedule,
        sparsity=None if given or config.threshold else config.sparsity,
        distribution=DISTRIBUTIONS[config.distribution](),
        regrowth=REGROWTHS[config.regrowth](),
        seed=config.seed,
    )


def transform_of(config: Config) -> Any:
    adam = optax.adam(1e-2, eps=1e-3)  # 1e-8 is zero in float16, and 0 / 0 no weight
    if config.wrapper == "chain":
        return optax.chain(pruner_of(config), adam)
    if config.wrapper == "apply_masks":
        return optax.chain(pruner_of(config), adam, js.apply_masks())
    if config.wrapper == "inject_hyperparams":
        inject = optax.inject_hyperparams(
            js.prune, hyperparam_dtype=jnp.float32, static_args=STATIC
        )
        return js.pruned(adam, pruner_of(config, make=inject))
    if config.wrapper == "partition":
        labels = {"dense": {"bias": "a", "kernel": "a"}, "stack": {"kernel": "b"}}
        halves = {"a": "dense/kernel", "b": "stack/kernel"}
        return optax.partition(
            {h: js.pruned(adam, pruner_of(config, p)) for h, p in halves.items()},
            labels,
        )
    if config.wrapper == "schedule_free":
        return js.pruned(optax.contrib.schedule_free_sgd(1e-2), pruner_of(config))
    tx = js.pruned(adam, pruner_of(config))
    if config.wrapper == "multi_steps":
        return optax.MultiSteps(tx, every_k_schedule=1).gradient_transformation()
    if config.wrapper == "apply_if_finite":
        return optax.apply_if_finite(tx, max_consecutive_errors=3)
    if config.wrapper == "lookahead":
        return optax.lookahead(tx, sync_period=3, slow_step_size=0.5)
    return tx


STATIC = ("rules", "score", "sparsity", "distribution", "regrowth", "masks", "seed")


def params_of(config: Config) -> Any:
    """Weights that are multiples of 2^-7, and thus the same in every dtype; ties included."""
    rng = np.random.default_rng(config.seed)
    flat = {
        path: jnp.asarray(rng.integers(-128, 128, shape) / 128, DTYPES[config.dtype])
        for path, shape in SHAPES.items()
    }
    tree = {"dense": {"kernel": 0, "bias": 0}, "stack": {"kernel": 0}}
    return replace_by_path(tree, flat)


def slopes_of(config: Config, params: Any) -> list[Any]:
    """Gradients of every step."""
    rng = np.random.default_rng(config.seed + 1)
    return [
        jax.tree.map(lambda w: jnp.asarray(rng.integers(-64, 64, w.shape) / 64, w.dtype), params)
        for _ in range(STEPS)
    ]


class Run:
    """A jitted step, counted, and what it leaves."""

    def __init__(self, config: Config):
        self.config, self.traces = config, 0
        tx = self.tx = transform_of(config)

        def step(params, state, grads):
            self.traces += 1
            masks = js.masks(state)
            weights = getattr(params, "fast", params)
            # A forward pass must see masked weights; its gradients here are drawn.
            seen = js.mask_params(weights, masks)
            grads = jax.tree.map(lambda g, w: g + 0 * w, grads, seen)
            extra = {"masks": masks} if config.wrapper == "apply_masks" else {}
            updates, state = tx.update(grads, state, params, **extra)
            return optax.apply_updates(params, updates), state

        self.step = jax.jit(step)

    def start(self, params: Any) -> tuple[Any, Any]:
        if self.config.wrapper == "lookahead":
            params = optax.LookaheadParams.init_synced(params)
        return params, jax.jit(self.tx.init)(params)


def through_bytes(tree: Any) -> Any:
    """A tree whose arrays were written to bytes by flax and read again."""
    leaves, structure = jax.tree.flatten(tree)
    stored = serialization.msgpack_serialize(
        {str(i): np.asarray(leaf) for i, leaf in enumerate(leaves)}
    )
    read = serialization.msgpack_restore(stored)
    return jax.tree.unflatten(structure, [jnp.asarray(read[str(i)]) for i in range(len(leaves))])


def check(config: Config) -> None:
    """Raises AssertionError on a promise that the run breaks."""
    params = params_of(config)
    slopes = slopes_of(config, params)
    run = Run(config)
    weights, state = run.start(params)
    previous = js.masks(state)
    history = []
    for t in range(STEPS):
        before = js.masks(state)
        weights, state = run.step(weights, state, slopes[t])
        masks = js.masks(state)
        check_counts(config, params, masks, t)
        hidden = before if config.wrapper == "apply_masks" else masks
        check_zeros(config, weights, masks, hidden)
        if config.regrowth == "none" and not config.threshold:
            assert all(not (masks[p] & ~previous[p]).any() for p in masks), f"regrew at {t}"
        previous = masks
        history.append((weights, state))
    assert run.traces == 1, f"{run.traces} compilations"
    check_resume(run, slopes, history)
    if config.mesh != "one":
        check_devices(config, params, slopes, history)


def check_counts(config: Config, params: Any, masks: Any, t: int) -> None:
    if config.threshold:
        return
    specs = resolve(rules_of(config), params)
    given = isinstance(config.schedule, float)
    s = config.schedule
    if config.distribution == "uniform" or given:
        targets = dict.fromkeys(specs, config.sparsity)
    else:
        distribution = DISTRIBUTIONS[config.distribution]()
        targets = js.targets(rules_of(config), params, config.sparsity, distribution)
    if not given and t < s.begin:
        if isinstance(REGROWTHS[config.regrowth](), DropAndGrow):
            return  # these begin from random masks
        assert all(mask.all() for mask in masks.values()), "pruned before it began"
        return
    last = given or s.end is None or t >= s.end
    total = wanted_total = 0
    for path, spec in specs.items():
        mask, batch = np.asarray(masks[path]), len(spec.view.batch)
        asked = targets[path] if given else float(s.sparsity(last_update(s, t), targets[path]))
        asked = targets[path] if last else asked
        if isinstance(config.pattern, NM):
            check_nm(config.pattern, mask, last)
            continue
        groups = np.asarray(spec.pool(jnp.asarray(mask), "max")) > 0
        assert (np.asarray(spec.expand(jnp.asarray(groups))) == mask).all(), f"{path}: cut groups"
        kept = groups.reshape(*groups.shape[:batch], -1).sum(-1)
        total += kept.sum()
        wanted = spec.units - round(asked * spec.units)
        wanted_total += wanted * max(1, kept.size)
        if config.distribution == "global":
            continue
        # Between begin and end the curve is computed in float32; a half may round up.
        assert (np.abs(kept - wanted) <= (0 if last else 1)).all(), f"{path}: {kept}, not {wanted}"
    if config.distribution == "global":
        size = sum(spec.units * max(1, np.prod(spec.view.batch_shape)) for spec in specs.values())
        wanted_total = size - round(asked * size)
        assert abs(total - wanted_total) <= (0 if last else 1), f"{total} kept, not {wanted_total}"


def last_update(schedule: js.Schedule, t: int) -> int:
    """The last step at or before t at which masks were chosen."""
    return max(u for u in range(t + 1) if bool(schedule.updates_at(u)))


def check_nm(pattern: NM, mask: np.ndarray, last: bool) -> None:
    tiles = mask.reshape(*mask.shape[:-2], -1, pattern.m, mask.shape[-1]).sum(-2)
    whole = tiles == pattern.m
    if pattern.method == "greedy":
        assert ((tiles <= pattern.n) | (whole & (not last))).all()
    else:
        assert ((tiles == pattern.n) | (whole & (not last))).all(), f"no {pattern}: {tiles}"


def check_zeros(config: Config, weights: Any, masks: Any, hidden: Any) -> None:
    weights = getattr(weights, "fast", weights)
    if config.wrapper in ("chain", "lookahead"):  # raw or averaged weights are no zeros
        weights, hidden = js.mask_params(weights, masks), masks
    for path, mask in hidden.items():
        leaf = np.asarray(leaves_by_path(weights)[path].astype(jnp.float32))
        zeros = leaf[~np.asarray(mask)]
        assert (zeros == 0).all() and not np.signbit(zeros).any(), f"{path}: masked is not +0"


def through_a_checkpoint(tree: Any) -> Any:
    """A tree that orbax wrote to disk and read again."""
    with tempfile.TemporaryDirectory() as folder, js.checkpoint.Checkpointer(folder) as saved:
        saved.save(RESUME, tree)
        saved.wait()
        found = saved.restore_latest(jax.tree.map(jnp.zeros_like, tree))
    assert found is not None and found[0] == RESUME
    return found[1]


def check_resume(run: Run, slopes: list[Any], history: list[Any]) -> None:
    on_disk = run.config.seed % 10 == 0  # which is slower
    stored = through_a_checkpoint if on_disk else through_bytes
    weights, state = stored(history[RESUME - 1])
    for t in range(RESUME, STEPS):
        weights, state = run.step(weights, state, slopes[t])
    for a, b in zip(jax.tree.leaves((weights, state)), jax.tree.leaves(history[-1]), strict=True):
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes(), "a resumed run differs"
    assert run.traces == 1, "a resumed run compiles again"


SHARDED = {
    "dense/kernel": PartitionSpec("x", "y"),
    "dense/bias": PartitionSpec("y"),
    "stack/kernel": PartitionSpec(None, "x", "y"),
}


def check_devices(config: Config, params: Any, slopes: list[Any], history: list[Any]) -> None:
    kind = AxisType.Auto if config.mesh == "auto" else AxisType.Explicit
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(kind, kind))

    def put(tree):
        return replace_by_path(
            tree,
            {
                path: jax.device_put(leaf, NamedSharding(mesh, sharding_of(config, path)))
                for path, leaf in leaves_by_path(tree).items()
            },
        )

    with jax.set_mesh(mesh):
        run = Run(config)
        weights, state = run.start(put(params))
        for t in range(STEPS):
            weights, state = run.step(weights, state, put(slopes[t]))
            for path, mask in js.masks(state).items():
                expected = js.masks(history[t][1])[path]
                np.testing.assert_array_equal(mask, expected, f"{path} on eight devices, step {t}")
        check_zeros(config._replace(wrapper="chain"), weights, js.masks(state), js.masks(state))


def sharding_of(config: Config, path: str) -> PartitionSpec:
    """Shards of whole groups; under explicit axes others are refused, see `LeafSpec.pool`."""
    shape, spec = SHAPES[path], SHARDED[path]
    devices = {"x": 4, "y": 2, None: 1}
    shard = tuple(size // devices[axis] for size, axis in zip(shape, spec, strict=True))
    found = resolve(rules_of(config), params_of(config)).get(path)
    if found is not None and config.mesh == "explicit" and found.pattern.cut_by(found.view, shard):
        return PartitionSpec()
    return spec


def main(arguments: list[str] | None = None) -> int:
    """Runs the configurations asked for; returns how many failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--configs", type=int, default=500, help="how many to draw")
    parser.add_argument("--seed", type=int, default=0, help="of the draw")
    parser.add_argument("--first", type=int, default=0, help="number of the first one")
    parser.add_argument("--minutes", type=float, default=None, help="stop after so long")
    asked = parser.parse_args(arguments)
    began, failed, done = time.monotonic(), 0, 0
    for number in range(asked.first, asked.first + asked.configs):
        if asked.minutes is not None and time.monotonic() - began > 60 * asked.minutes:
            break
        config = draw(asked.seed, number)
        try:
            check(config)
        except Exception:
            failed += 1
            print(traceback.format_exc(limit=-3), config)
            print(
                f"python -m tests.fuzz.transforms --seed {asked.seed} --first {number} --configs 1",
                flush=True,
            )
        done += 1
        if done % 50 == 0:
            print(f"{done} done, {failed} failed", flush=True)
        jax.clear_caches()
    seconds = time.monotonic() - began
    print(f"{done} configurations, seed {asked.seed}: {failed} failed, {seconds:.0f} s")
    return failed


if __name__ == "__main__":
    sys.exit(bool(main()))
