"""What movement sparsity promises of a pretrained transformer, and how it is measured.

For every seed a dense MiniLM is fine-tuned once, and all arms of ``reviews_movement`` start
from it and learn from it.
"""

import pathlib
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from flax import nnx

import jaxsparse as js
from experiments import config as configs
from experiments import outcome, train, workdir
from experiments.bench import serving
from experiments.huggingface.sources import load_run
from experiments.rules import parse_rules
from experiments.smaller import pack_blocks

_CONFIGS = pathlib.Path(__file__).parent / "configs"
DENSE, ARMS_OF = "reviews_dense.py", "reviews_movement.py"
ARMS = (
    "light",
    "light_blocks",
    "light_magnitude",
    "strong",
    "strong_blocks",
    "strong_magnitude",
)
TOKENS, PACKED = 64, ", packed"


class Bound(NamedTuple):
    """A number that an arm must reach.

    Attributes:
      arm: which.
      what: the measurement: ``linear_left``, ``linear_bytes``, ``auc``, ``f1`` (points over
        the dense model's), or how many times faster than dense its smallest form is in a
        runtime, at the batch where that is less.
      least: whether the number is the least that will do; otherwise it is the most.
      number: the bound.
    """

    arm: str
    what: str
    least: bool
    number: float

    def holds(self, found: float) -> bool:
        """Whether a measurement is within the bound."""
        return found >= self.number if self.least else found <= self.number

    def __str__(self) -> str:
        return f"{self.arm}: {self.what} {'>=' if self.least else '<='} {self.number:g}"


BOUNDS = tuple(
    bound
    for arm, left, size, auc, f1, speeds in (
        ("light", 0.40, 0.45, -0.5, -1.0, {"JAX": 2.2, "ONNX Runtime": 1.8, "OpenVINO": 1.8}),
        ("light_blocks", 0.40, 0.45, -0.5, -1.0, {"JAX": 3.5}),
        ("strong", 0.22, 0.25, -1.0, -2.0, {"JAX": 3.2, "ONNX Runtime": 2.6, "OpenVINO": 2.6}),
        ("strong_blocks", 0.22, 0.25, -1.0, -2.0, {"JAX": 5.5}),
    )
    for bound in (
        Bound(arm, "linear_left", False, left),
        Bound(arm, "linear_bytes", False, size),
        Bound(arm, "auc", True, auc),
        Bound(arm, "f1", True, f1),
        *(Bound(arm, runtime, True, speed) for runtime, speed in speeds.items()),
    )
)
RIVALS = (("light_blocks", "light_magnitude"), ("strong_blocks", "strong_magnitude"))


def measure(
    seeds: Sequence[int], folder: pathlib.Path, arms: Sequence[str] = ARMS
) -> dict[str, Any]:
    """Runs the dense model and every arm at every seed; what is finished is only read.

    Latencies are measured last, of the first seed: all models in turn in one process.

    Args:
      seeds: one dense run each.
      folder: of the runs, ``<arm>/<seed>`` in it.
      arms: of ``reviews_movement``.

    Returns:
      Per arm and seed the held-out AUC, macro F1 and accuracy, what is left of the linear
      weights, their bytes and those of all weights as shares of dense; latencies as
      ``serving.measure`` has them; for every bound its measurement, None where a runtime is
      not installed, and whether it holds; and movement's lead over magnitude.
    """
    reports: dict[str, list[dict]] = {arm: [] for arm in ("dense", *arms)}
    for seed in seeds:
        dense = folder / "dense" / str(seed)
        reports["dense"].append(_run(DENSE, {"seed": seed}, dense))
        options = {"seed": seed, "init_from": str(dense), "distillation.teacher": str(dense)}
        for arm in arms:
            reports[arm].append(_run(f"{ARMS_OF}:{arm}", options, folder / arm / str(seed)))
    rows = {arm: [_row(report) for report in found] for arm, found in reports.items()}
    models = _models({arm: folder / arm / str(seeds[0]) for arm in reports})
    served = serving.measure(models, lambda batch: serving.example(models["dense"], batch, TOKENS))
    return {
        "seeds": list(seeds),
        "test_examples": reports["dense"][0]["test_examples"],
        "steps": {arm: found[0]["steps"] for arm, found in reports.items()},
        "arms": rows,
        "latency": served,
        "bounds": [
            {
                "bound": str(bound),
                "found": (found := _found(rows, served["rows"], bound)),
                "holds": None if found is None else bound.holds(found),
            }
            for bound in BOUNDS
            if bound.arm in arms
        ],
        "rivals": [
            {
                "movement": one,
                "magnitude": two,
                "auc_points": 100 * (_mean(rows[one], "auc") - _mean(rows[two], "auc")),
                "f1_points": 100 * (_mean(rows[one], "f1") - _mean(rows[two], "f1")),
                "linear_left": [_mean(rows[arm], "linear_left") for arm in (one, two)],
            }
            for one, two in RIVALS
            if one in arms and two in arms
        ],
        "command": f"python -m experiments.sweep --claim movement --seeds {len(seeds)}",
        "environment": outcome.environment(),
    }


def _models(folders: Mapping[str, pathlib.Path]) -> dict[str, Any]:
    """The module that each run left; of those with sparse blocks also the packed function."""
    models: dict[str, Any] = {}
    for arm, folder in folders.items():
        models[arm] = model = load_run(folder).model
        options = workdir.read_json(folder / workdir.CONFIG, "run it again", dict)
        graph, state = nnx.split(model)
        if arm != "dense" and (packed := pack_blocks(state, parse_rules(options["rules"]))):
            models[f"{arm}{PACKED}"] = _packed(graph, packed)
    return models


def _packed(graph: Any, packed: Any) -> Callable[..., Any]:
    run = js.sparsify(lambda state, *inputs: nnx.merge(graph, state)(*inputs))
    return lambda *inputs: run(packed, *inputs)


def _run(file: str, options: Mapping[str, Any], place: pathlib.Path) -> dict[str, Any]:
    return train.run(configs.load(str(_CONFIGS / file), options), str(place))


def _row(report: Mapping[str, Any]) -> dict[str, Any]:
    row = {name: report[f"sparse_{name}"] for name in ("auc", "f1", "accuracy")}
    row["seconds"] = report["seconds"]
    if "linear_left" not in report:
        return row
    row["linear_left"] = report["linear_left"]
    for key in ("linear_bytes", "model_bytes", "linear_bytes_16", "model_bytes_16"):
        row[key] = report[key]["smallest"] / report[key]["dense"]
    row["kept"] = {group["group"]: len(group["kept"]) for group in report["structure"]}
    return row


def _mean(rows: Sequence[Mapping[str, Any]], name: str) -> float:
    return statistics.fmean(row[name] for row in rows)


def _found(
    arms: Mapping[str, Sequence[Mapping[str, Any]]],
    latencies: Sequence[Mapping[str, Any]],
    bound: Bound,
) -> float | None:
    rows = arms[bound.arm]
    if bound.what in ("auc", "f1"):
        return 100 * (_mean(rows, bound.what) - _mean(arms["dense"], bound.what))
    if bound.what in rows[0]:
        return _mean(rows, bound.what)
    return min(_speedups(latencies, bound.arm, bound.what), default=None)


def _speedups(latencies: Sequence[Mapping[str, Any]], arm: str, runtime: str) -> list[float]:
    """Times faster than dense, by batch, of the smallest form that an arm has."""
    here = [row for row in latencies if row["runtime"] == runtime]
    packed = [row["speedup"] for row in here if row["model"] == arm + PACKED]
    return packed or [row["speedup"] for row in here if row["model"] == arm]


def as_markdown(outcome: Mapping[str, Any]) -> str:
    """A table of the arms, the bounds with their verdicts, and movement against magnitude."""
    lines = [
        "MiniLM on the clothing reviews, pruned by movement sparsity: 32x32 blocks in attention, "
        "neurons in the feed-forward parts.",
        "",
        "| arm | AUC | macro F1 | accuracy | linear weights left | their bytes | all bytes "
        "| times faster in JAX at batch 1, 32 |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for arm, rows in outcome["arms"].items():
        cells = [arm, *(_spread(rows, name) for name in ("auc", "f1", "accuracy"))]
        if "linear_left" in rows[0]:
            cells += [f"{_mean(rows, 'linear_left'):.1%}"]
            cells += [f"{_mean(rows, key):.2f}x" for key in ("linear_bytes", "model_bytes")]
            found = _speedups(outcome["latency"]["rows"], arm, "JAX")
            cells += [", ".join(f"{speedup:.2f}" for speedup in found)]
        else:
            cells += ["100 %", "1x", "1x", "1, 1"]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "| claimed | found | |", "|---|---|---|"]
    verdicts = {True: "holds", False: "does not hold", None: "not installed"}
    for row in outcome["bounds"]:
        found = "-" if row["found"] is None else f"{row['found']:.3f}"
        lines.append(f"| {row['bound']} | {found} | {verdicts[row['holds']]} |")
    lines += ["", serving.markdown(outcome["latency"]["rows"])]
    for row in outcome["rivals"]:
        left = " and ".join(f"{share:.1%}" for share in row["linear_left"])
        lines.append(
            f"{row['movement']} against {row['magnitude']} ({left} left): AUC "
            f"{row['auc_points']:+.2f}, F1 {row['f1_points']:+.2f} points."
        )
    lines += [
        "",
        f"`{outcome['command']}`, {outcome['test_examples']} held-out reviews, means of "
        f"{len(outcome['seeds'])} seeds; milliseconds of {TOKENS} tokens, and times faster than "
        "the dense model in the same runtime, in brackets by processor time; "
        + ", ".join(f"{key} {value}" for key, value in outcome["environment"].items()),
    ]
    return "\n".join(lines) + "\n"


def _spread(rows: Sequence[Mapping[str, Any]], name: str) -> str:
    each = " ".join(f"{100 * row[name]:.2f}" for row in rows)
    return f"{100 * _mean(rows, name):.2f} ({each})"
