"""What INT8 and 4x16 blocks cost DLRM in accuracy on MovieLens, and how it is measured.

For every seed a dense and a sparse model are trained in the same steps, and both are quantized
after training: four models whose AUC is compared seed by seed. One run's AUC is uncertain by
0.003, the bootstrap deviation on 20,000 examples, which pairs of one seed share in part. Speed is
another matter: ``bench.int8`` measures it at other sizes.
"""

import math
import pathlib
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxsparse as js
from experiments import config as configs
from experiments import data, experiment, int8, outcome, starting, tasks, train
from jaxsparse.trees import replace_by_path

_CONFIGS = pathlib.Path(__file__).parent / "configs"
RUNS = {"dense": "movielens_dlrm_dense.py", "sparse": "movielens_dlrm.py"}
# The published recipe: gradients masked, lasso, step, weights masked. Its lasso has to be weak
# before Adam: AUC of seed 0 is 0.7858 without, 0.7848 with 1e-4 and 0.7805 with 1e-3.
LASSO = {"dense": {}, "sparse": {"recipe.group_lasso": 1e-5}}
RULES = (js.Rule(r"(bottom|top)/layers_\d+/kernel", js.Block(4, 16, pad=True)),)
MODELS = ("f32 dense", "f32 sparse", "INT8 dense", "INT8 sparse")
BATCHES, LEAST = 8, 0.998  # to calibrate with; of the AUC of f32 dense


def measure(
    seeds: Sequence[int], folder: pathlib.Path, options: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Trains both models at every seed, and quantizes them; what is finished is only read.

    Args:
      seeds: a dense and a sparse run each.
      folder: of the runs, ``<run>/<seed>`` in it.
      options: of both configs, by dotted key.

    Returns:
      Per model and seed the held-out AUC; of the INT8 ones the largest share of a layer's
      activations that saturates on held-out examples; by model the mean ratio to f32 dense of
      the same seed and its standard error; and whether INT8 sparse has at least ``LEAST`` of it.
    """
    auc: dict[str, list[float]] = {name: [] for name in MODELS}
    saturated: dict[str, list[float]] = {name: [] for name in MODELS[2:]}
    sparsities, steps, examples = [], 0, 0
    for seed in seeds:
        for name, file in RUNS.items():
            changes = {**LASSO[name], **(options or {}), "seed": seed}
            config = configs.load(str(_CONFIGS / file), changes)
            place = folder / name / str(seed)
            report = train.run(config, str(place), html=False)
            built = experiment.build(config)
            auc[f"f32 {name}"].append(report["sparse_auc"])
            found, share = _quantized(built, place)
            auc[f"INT8 {name}"].append(found)
            saturated[f"INT8 {name}"].append(share)
            steps, examples = report["steps"], report["test_examples"]
            if name == "sparse":
                sparsities.append(report["sparsity"])
    ratios = {name: [a / b for a, b in zip(auc[name], auc[MODELS[0]], strict=True)] for name in auc}
    mean = {name: statistics.fmean(found) for name, found in ratios.items()}
    return {
        "seeds": list(seeds),
        "test_examples": examples,
        "steps": steps,
        "sparsity": sparsities,
        "auc": auc,
        "saturated": saturated,
        "ratio": {name: [mean[name], _standard_error(ratios[name])] for name in MODELS},
        "least": LEAST,
        "holds": mean[MODELS[3]] >= LEAST,
        "command": f"python -m experiments.sweep --claim int8 --seeds {len(seeds)}",
        "environment": outcome.environment(),
    }


def _quantized(built: experiment.Experiment, place: pathlib.Path) -> tuple[float, float]:
    """AUC in INT8 of the model that a run left, and the largest share that saturates."""
    state = built.init()
    with np.load(place / starting.WEIGHTS) as weights:
        params = replace_by_path(state.params, {k: jnp.asarray(w) for k, w in weights.items()})
    test = built.dataset.test

    def forward(params, inputs):
        return built.forward(params, state.extra, inputs)

    model = int8.quantize(
        forward, params, [(built.batches(step)[0],) for step in range(BATCHES)], RULES
    )
    run = jax.jit(model.forward)
    logits = data.predict_all(lambda inputs: run(model.params, inputs), test)
    counts = js.quantized.saturation(forward, params, [(test.inputs,)], model.codes, most=1.0)
    found = tasks.evaluate(built.dataset.task, logits, test.labels)
    return found["auc"], max(count.share for count in counts.values())


def _standard_error(found: Sequence[float]) -> float | None:
    return statistics.stdev(found) / math.sqrt(len(found)) if len(found) > 1 else None


def as_markdown(outcome: Mapping[str, Any]) -> str:
    """A table of the four models, and the verdict."""
    lines = [
        "DLRM on MovieLens-100k, the two large layers of the top MLP at "
        f"{statistics.fmean(outcome['sparsity']):.0%} in 4x16 blocks by group lasso and gradual "
        f"magnitude, {outcome['steps']} steps each; INT8 after training, static u8 activations.",
        "",
        "| model | AUC, mean | per seed | of f32 dense | saturates at most |",
        "|---|---|---|---|---|",
    ]
    for name, found in outcome["auc"].items():
        mean, error = outcome["ratio"][name]
        of_dense = f"{mean:.2%}" + ("" if error is None else f" ± {error:.2%}")
        cells = [
            name,
            f"{statistics.fmean(found):.4f}",
            " ".join(f"{value:.4f}" for value in found),
            "1" if name == MODELS[0] else of_dense,
            f"{max(outcome['saturated'][name]):.2%}" if name in outcome["saturated"] else "-",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    verdict = "holds" if outcome["holds"] else "does not hold"
    lines += [
        "",
        f"INT8 sparse has at least {outcome['least']:.1%} of the AUC of f32 dense, by pairs of one "
        f"seed: it {verdict}. No speed follows from this; `python -m experiments.bench.int8` "
        "measures that at the sizes of MLPerf.",
        "",
        f"`{outcome['command']}`, {outcome['test_examples']} held-out examples, means and standard "
        "errors of pairs; "
        + ", ".join(f"{key} {value}" for key, value in outcome["environment"].items()),
    ]
    return "\n".join(lines) + "\n"
