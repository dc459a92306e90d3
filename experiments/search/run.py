"""A run: dense training, the search, tuning of what is left; then all of it is measured."""

import contextlib
import logging
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxsparse as js
from experiments import config as configs
from experiments import data, lock, models, outcome, starting, train, workdir
from experiments.configs import base
from experiments.search import config as own
from experiments.search import costs, methods, speed, tuning
from experiments.search.clock import Clock
from experiments.search.problem import Limits, Problem, budget_of
from jaxsparse.allocation import Allocation, Cost, Flops, Latency, narrow
from jaxsparse.files import replacing
from jaxsparse.trees import leaves_by_path, replace_by_path

_LOG = logging.getLogger(__name__)
DENSE, TUNED = "dense", "tuned"
ALLOCATION, SEARCH, MASKS = "allocation.json", "search.json", "masks.npz"
SEARCHED, SEARCHED_MASKS, WEIGHTS = "searched.npz", "searched_masks.npz", "weights.npz"
_AGAIN = "delete the folder: it is made again"
# Batches after which batch norms have seen enough: what came before counts 0.9 ** 50. They are
# large, for the last ten count most, and where images have shrunk to a pixel each has few numbers.
_SETTLED, _LARGE = 50, 256


class Setting(NamedTuple):
    """What a run is about, known before anything is trained.

    Attributes:
      config: checked.
      dataset: with a part for validation.
      model: see `experiments.models`.
      fn: (tree, inputs) -> outputs of the tree {"params": ..., "extra": ...}.
      shapes: of the tree.
      example: inputs of one example.
      structure: the model's unit groups.
      limits: of their widths.
      cost: by widths.
      budget: of it.
      latency: of a batch, where it is to be predicted.
    """

    config: Any
    dataset: data.Dataset
    model: models.Model
    fn: Callable[[Any, Any], Any]
    shapes: Any
    example: Any
    structure: js.graph.Structure
    limits: Limits
    cost: Cost
    budget: float
    latency: Latency | None


def run(config: Any, path: str, overwrite: bool = False, html: bool = True) -> dict[str, Any]:
    """Searches the widths of a model as a config says, or goes on where a killed run stopped.

    Args:
      config: see `config.get_config`.
      path: the run's folder. It receives config.json, dense/ (a run of `experiments.run`, unless
        the config names another), allocation.json, weights.npz and masks.npz of the tuned model,
        report.html and at the very end report.json.
      overwrite: delete a run that is there first.
      html: whether to draw report.html.

    Returns:
      What report.json holds: `rows`, of the dense model, the searched and the tuned one, with
      their accuracy on the test and validation parts; `flops`, and `speed` as `speed.measure`
      has it; the budget, widths, seconds of search and tuning, the machine, the config.

    Raises:
      ValueError: a config without meaning, data without a part for validation, a budget out of
        reach, a model without groups, a folder that is not for this config, or in use.
      DownloadError: data could not be fetched.
      OSError: a file cannot be written; it is named. The same call goes on from there.
    """
    own.check(config)
    reads = workdir.finished(pathlib.Path(path)) and not overwrite
    with contextlib.nullcontext() if reads else lock.held(path):
        folder = workdir.open_workdir(path, configs.to_json(config), overwrite)
        if workdir.finished(folder):
            _LOG.info("%s is finished; --overwrite starts it again", folder)
        else:
            _run(_prepare(config, folder), folder, html)
        return workdir.read_report(folder)


def _prepare(config: Any, folder: pathlib.Path) -> Setting:
    """Loads the data and traces the model; what cannot be done is said here."""
    _LOG.info("preparing data %r and model %r", config.data.name, config.model.name)
    dataset = data.load(**config.data)
    if dataset.task != "classification" or dataset.validation is None:
        raise ValueError(
            f"config.data: {config.data.name!r} is for {dataset.task}, with"
            f"{'out' if dataset.validation is None else ''} a validation part; a search chooses by "
            "accuracy on one: mnist10k, or digits with validation_fraction=0.2, would work"
        )
    model = models.create(dataset=dataset, **config.model)

    def fn(tree, inputs):
        return model.apply(tree["params"], tree["extra"], inputs, None)[0]

    params, extra = jax.eval_shape(model.init, jax.random.key(0))
    shapes = {"params": params, "extra": extra}
    example = jax.tree.map(jnp.asarray, dataset.train.take(slice(0, 1)).inputs)
    structure = js.graph.structure(fn, shapes, example)
    if not structure.groups:
        raise ValueError(
            f"config.model: {config.model.name!r} has no group of channels that weights alone "
            "read; js.graph.channels tells what holds them"
        )
    units = {group.name: group.units for group in structure.groups}
    limits = Limits(units, config.divisor, config.lowest)
    batch = speed.batch_of(dataset.train, config.latency.batch)
    table = config.latency.table or str(folder / "latency.json")
    traced = costs.Traced(fn, shapes, example, batch, table, config.latency.steps)
    _LOG.info("counting %s", config.budget.of)
    cost = costs.KINDS.create(config.budget.of, traced)
    budget = budget_of(cost, limits, config.budget.share, config.budget.width)
    latency = cost if isinstance(cost, Latency) else None
    if latency is None and config.latency.predict:
        latency = costs.latency(traced)
    return Setting(
        *(config, dataset, model, fn, shapes, example, structure, limits, cost, budget, latency)
    )


def _run(setting: Setting, folder: pathlib.Path, html: bool) -> None:
    config, dense = setting.config, _dense(setting, folder)
    clock = Clock(folder / "search_clock.json")
    problem = _problem(setting, dense, folder, clock)
    found, searched_in = _searched(problem, config.method, config.search, clock)
    widths = found.allocation.widths
    start = dense if found.tree is None else found.tree
    masks = found.masks
    if masks is None:
        masks = narrow(setting.structure, start, widths)
    searched = js.mask_params(start, masks)
    tuned, tune_seconds = _tuned(problem, config.tuning.steps, searched, masks)
    _LOG.info("measuring the result")
    trees = {DENSE: dense, config.method: searched, TUNED: tuned}
    report = {
        "method": config.method,
        "model": config.model.name,
        "data": config.data.name,
        "data_source": setting.dataset.source,
        "train_examples": len(setting.dataset.train),
        "validation_examples": len(setting.dataset.validation or ()),
        "test_examples": len(setting.dataset.test),
        "rows": [{"stage": n, **_accuracies(setting, tree)} for n, tree in trees.items()],
        "budget": {
            "of": config.budget.of,
            "unit": setting.cost.unit,
            "most": searched_in["budget"],
        },
        "cost": searched_in["cost"],
        "flops": _flops(setting, widths),
        "speed": speed.measure(
            *(setting.fn, dense, tuned, masks, setting.dataset.test),
            *(config.latency.batch, config.latency.rounds, setting.latency, widths),
        ),
        "groups": [
            {"group": name, "units": units, "kept": widths.get(name, units)}
            for name, units in setting.limits.units.items()
        ],
        "search_seconds": searched_in["seconds"],
        "tune_seconds": tune_seconds,
        "history": found.history,
        "environment": outcome.environment(),
        "config": configs.to_json(config),
    }
    _save(folder / MASKS, {path: np.asarray(mask) for path, mask in masks.items()})
    if html:
        from experiments.search import page  # late: matplotlib, which only this needs

        workdir.write_text(folder / "report.html", page.build(report))
    workdir.write_json(folder / workdir.REPORT, report)


def dense_config(config: Any) -> Any:
    """The config of `experiments.run` that trains the dense model of a search."""
    made = base.get_config(config.train.steps)
    made.seed, made.batch_size = config.seed, config.train.batch_size
    made.data.update(config.data)
    made.model = config.model.copy_and_resolve_references()
    made.learning_rate.update(peak=config.train.peak, warmup=0.1)
    made.rules = ((r".*/kernel", "unstructured"),)
    made.eval_every = made.checkpoint_every = max(1, config.train.steps // 4)
    return made


def _dense(setting: Setting, folder: pathlib.Path) -> Any:
    """The dense tree, trained if need be."""
    config, model = setting.config, setting.model
    place = config.init_from
    if not place:
        place = str(folder / DENSE)
        train.run(dense_config(config), place, html=False)
    weights = starting.weights_of("init_from", place, model)
    params, extra = starting.trees(model, jax.random.key(config.seed), weights)
    size = min(_LARGE, len(setting.dataset.train))
    batches = data.Batches(setting.dataset.train, size, config.seed)
    return {"params": params, "extra": tuning.settled(model, params, extra, batches, _SETTLED)}


def _problem(setting: Setting, dense: Any, folder: pathlib.Path, clock: Clock) -> Problem:
    config, dataset = setting.config, setting.dataset
    assert dataset.validation is not None  # `_prepare` says so
    validation = dataset.validation.take(slice(0, config.examples))
    inputs, labels = jax.tree.map(jnp.asarray, (validation.inputs, validation.labels))

    @jax.jit
    def accuracy(tree):
        return jnp.mean(setting.fn(tree, inputs).argmax(-1) == labels)

    def evaluate(tree):
        clock.tick()
        return accuracy(tree)

    tune = tuning.tuner(
        *(setting.model, dataset, config.tuning.batch_size, config.tuning.peak, config.seed)
    )
    return Problem(
        *(setting.fn, dense, setting.example, setting.structure, setting.limits),
        *(setting.cost, setting.budget, validation, evaluate, tune, folder, config.seed),
        tick=clock.tick,
    )


def _searched(
    problem: Problem, method: str, options: Any, clock: Clock
) -> tuple[methods.Found, dict[str, Any]]:
    """What the method finds, with seconds, cost and budget; read where it did so before a kill.

    Measured costs are those of then: a table that was written and read is rounded.
    """
    folder = problem.folder
    file, weights, units = (folder / name for name in (SEARCH, SEARCHED, SEARCHED_MASKS))
    if not file.exists():
        _LOG.info("searching by %s", method)
        found = methods.METHODS.create(method, problem, **options)
        total = problem.cost.total(found.allocation.widths)
        if total > problem.budget:
            raise ValueError(
                f"{method} found {total:,} {problem.cost.unit}, and the budget is "
                f"{problem.budget:,.6g}"
            )
        found.allocation.save(folder / ALLOCATION)
        if found.tree is not None:
            _save(weights, leaves_by_path(found.tree))
        if found.masks is not None:
            _save(units, found.masks)
        numbers = {
            "seconds": clock.seconds,
            "cost": {"dense": problem.cost.total(), "found": total},
            "budget": problem.budget,
        }
        workdir.write_json(file, numbers | {"history": found.history})
    kept = workdir.read_json(file, _AGAIN)
    tree = _read(weights, problem.tree) if weights.exists() else None
    masks = _arrays(units) if units.exists() else None
    allocation = Allocation.load(folder / ALLOCATION)
    return methods.Found(allocation, kept.pop("history"), tree, masks), kept


def _tuned(problem: Problem, steps: int, tree: Any, masks: Any) -> tuple[Any, float]:
    """The tree after the last steps of training, and their seconds, as for `_searched`."""
    file, noted = problem.folder / WEIGHTS, problem.folder / "tuning.json"
    if not noted.exists():
        _LOG.info("tuning for %d steps", steps)
        clock = Clock(problem.folder / "tuning_clock.json")
        tuned = problem.tune(tree, masks, range(steps))
        _save(file, leaves_by_path(tuned))
        workdir.write_json(noted, {"seconds": clock.seconds})
    return _read(file, problem.tree), workdir.read_json(noted, _AGAIN)["seconds"]


def _accuracies(setting: Setting, tree: Any) -> dict[str, float]:
    predict, dataset = jax.jit(setting.fn), setting.dataset
    parts = {"accuracy": dataset.test, "validation_accuracy": dataset.validation}
    found = {}
    for name, split in parts.items():
        assert split is not None
        outputs = data.predict_all(lambda inputs: predict(tree, inputs), split, dataset.buckets)
        found[name] = float(np.mean(outputs.argmax(-1) == split.labels))
    return found


def _flops(setting: Setting, widths: Any) -> dict[str, int]:
    counted = Flops(setting.fn, setting.shapes, setting.example)
    return {"dense": counted.total(), "found": counted.total(widths)}


def _save(file: pathlib.Path, leaves: Any) -> None:
    with replacing(file) as out:
        arrays = {path: np.asarray(leaf) for path, leaf in leaves.items()}
        np.savez(out, allow_pickle=False, **arrays)


def _read(file: pathlib.Path, like: Any) -> Any:
    return replace_by_path(like, _arrays(file))


def _arrays(file: pathlib.Path) -> dict[str, jax.Array]:
    with np.load(file) as kept:
        return {path: jnp.asarray(kept[path]) for path in kept.files}
