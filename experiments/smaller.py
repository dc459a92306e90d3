"""What is left of a model when whole heads and neurons are gone: its size and its speed."""

import dataclasses
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxsparse as js
from experiments.data import Split
from experiments.experiment import Experiment, TrainState
from jaxsparse.packed.base import is_packed
from jaxsparse.patterns.rules import resolve
from jaxsparse.timing import interleave
from jaxsparse.trees import leaves_by_path, replace_by_path

# A block product of fewer blocks than these is faster than the dense one: docs/numbers.md.
_PACKED_BELOW = 0.6
_BATCHES, _SECONDS, _ROUNDS = (1, 32), 10.0, (15, 200)

Forward = Callable[[Any, Any], jax.Array]


@dataclasses.dataclass(frozen=True)
class Smaller:
    """A model in the forms in which it can be run.

    Attributes:
      dense: (forward, tree) of the masked model, its zeros multiplied.
      shrunk: the same without the heads and neurons that are gone.
      packed: that with its sparse kernels stored in blocks; None where none is sparse.
    """

    dense: tuple[Forward, Any]
    shrunk: tuple[Forward, Any]
    packed: tuple[Forward, Any] | None

    @property
    def forms(self) -> dict[str, tuple[Forward, Any]]:
        """Those that there are, by name."""
        found = {"dense": self.dense, "shrunk": self.shrunk}
        return found if self.packed is None else {**found, "packed": self.packed}


def measure(experiment: Experiment, state: TrainState) -> dict[str, Any]:
    """What ``sizes`` and ``latencies`` find of a trained model, for the report."""
    masks = experiment.masks(state)
    inputs = experiment.dataset.train.take(np.arange(2)).inputs
    model = smaller(experiment.forward, state.params, state.extra, masks, experiment.rules, inputs)
    kernels = [path for path, mask in masks.items() if mask.ndim > 1]
    return sizes(model, kernels) | {"forms": latencies(model, experiment.dataset.test)}


def smaller(
    forward: Callable[[Any, Any, Any], jax.Array],
    params: Any,
    extra: Any,
    masks: Mapping[str, Any],
    rules: Sequence[js.Rule],
    inputs: Any,
) -> Smaller:
    """Removes what masks leave empty, and packs the kernels whose blocks stay sparse.

    Args:
      forward: (params, extra, inputs) -> outputs in evaluation mode.
      params, extra: of the model.
      masks: by path.
      rules: one for each leaf; those of blocks say how kernels are packed.
      inputs: an example batch.
    """

    def whole(tree, inputs):
        return forward(tree["params"], tree["extra"], inputs)

    tree = {"params": js.mask_params(params, masks), "extra": extra}
    prefixed = {f"params/{path}": mask for path, mask in masks.items()}
    small, run, _ = js.graph.shrink(whole, tree, prefixed, inputs)
    moved = [dataclasses.replace(rule, path=f"params/(?:{rule.path})") for rule in rules]
    packed = pack_blocks(small, moved)
    return Smaller(
        (whole, tree), (run, small), None if packed is None else (js.sparsify(run), packed)
    )


def pack_blocks(tree: Any, rules: Sequence[js.Rule]) -> Any:
    """The tree with kernels in the blocks of their rules where enough of these are empty.

    None where no kernel is.
    """
    leaves, packed = leaves_by_path(tree), {}
    for path, spec in resolve(rules, tree).items():
        if isinstance(spec.pattern, js.Block) and leaves[path].ndim == 2:
            stored = js.pack(leaves[path], spec.pattern)
            if stored.values.size < _PACKED_BELOW * leaves[path].size:
                packed[path] = stored
    return replace_by_path(tree, packed) if packed else None


def sizes(model: Smaller, kernels: Sequence[str]) -> dict[str, Any]:
    """Weights and bytes of the dense and of the smallest form.

    Args:
      model: see ``smaller``.
      kernels: paths of the linear weights that were pruned.

    Returns:
      ``linear_left``, the share of the entries of these kernels that is stored;
      ``linear_bytes`` and ``model_bytes``, each of ``dense`` and ``smallest``, float32 and
      ``_16`` for 16 bits a value, indices counted.
    """
    forms = {"dense": model.dense[1], "smallest": (model.packed or model.shrunk)[1]}
    leaves = {name: leaves_by_path(tree, is_packed) for name, tree in forms.items()}
    linear = {name: [found[f"params/{path}"] for path in kernels] for name, found in leaves.items()}
    stored = {name: sum(map(_entries, found)) for name, found in linear.items()}
    found: dict[str, Any] = {"linear_left": stored["smallest"] / stored["dense"]}
    for suffix, dtype in (("", jnp.float32), ("_16", jnp.bfloat16)):
        for key, parts in (("linear", linear), ("model", leaves)):
            found[f"{key}_bytes{suffix}"] = {
                name: _bytes([*part.values()] if isinstance(part, dict) else part, dtype)
                for name, part in parts.items()
            }
    return found


def _entries(leaf: Any) -> int:
    return leaf.values.size if is_packed(leaf) else leaf.size


def _bytes(leaves: Sequence[Any], dtype: Any) -> int:
    width = jnp.dtype(dtype).itemsize
    total = 0
    for leaf in jax.tree.leaves(list(leaves)):
        floating = jnp.issubdtype(leaf.dtype, jnp.floating)
        total += leaf.size * (width if floating else leaf.dtype.itemsize)
    return total


def latencies(model: Smaller, split: Split) -> dict[str, Any]:
    """Milliseconds of a forward pass in every form, batch 1 and 32, in turn in one process.

    Returns:
      By batch, as text: ``ms`` by form, medians; ``speedup`` by form, medians of the ratio
      to dense within a round, and ``cpu_speedup``, the same of processor time, which other
      programs disturb less; ``rounds``; and ``max_abs_difference`` of outputs to dense.
    """
    found = {}
    for batch in _BATCHES:
        inputs = jax.tree.map(jnp.asarray, split.take(np.arange(batch) % len(split)).inputs)
        runs = {
            name: _bound(jax.jit(forward), tree, inputs)
            for name, (forward, tree) in model.forms.items()
        }
        outputs = {name: jax.block_until_ready(run()) for name, run in runs.items()}
        once = sum(sum(times) for times in interleave(runs, 1).values())
        rounds = int(np.clip(_SECONDS / once, *_ROUNDS))
        times = interleave(runs, rounds)
        processor = interleave(runs, rounds, clock=time.process_time)
        found[str(batch)] = {
            "rounds": rounds,
            "ms": {name: 1e3 * statistics.median(seconds) for name, seconds in times.items()},
            "speedup": _speedups(times),
            "cpu_speedup": _speedups(processor),
            "max_abs_difference": max(
                float(jnp.max(jnp.abs(output - outputs["dense"]))) for output in outputs.values()
            ),
        }
    return found


def _speedups(times: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Times faster than dense, medians over rounds."""
    # A clock of processor time may not tell two short calls apart.
    return {
        name: statistics.median(
            dense / max(ours, 1e-9) for dense, ours in zip(times["dense"], seconds, strict=True)
        )
        for name, seconds in times.items()
    }


def _bound(forward: Forward, tree: Any, inputs: Any) -> Callable[[], jax.Array]:
    return lambda: forward(tree, inputs)
