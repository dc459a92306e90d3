"""A run: perplexity dense, pruned by every stage, then what is left is measured and saved."""

import contextlib
import json
import logging
import pathlib
import resource
import shutil
import sys
import time
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import optax
from tqdm import tqdm

import jaxsparse as js
from experiments import config as configs
from experiments import lock, outcome, workdir
from experiments.data import corpora
from experiments.oneshot import allocating, methods, models, speed
from experiments.oneshot import config as own
from experiments.oneshot.models import LanguageModel
from experiments.perplexity import perplexity
from jaxsparse.allocation import Allocation
from jaxsparse.calibration import Fitted, OneShot, fit_parts, prune_oneshot
from jaxsparse.calibration.criteria import measured_by
from jaxsparse.calibration.progress import Pruned
from jaxsparse.files import replacing
from jaxsparse.patterns.rules import resolve
from jaxsparse.trees import leaves_by_path, replace_by_path

_LOG = logging.getLogger(__name__)
DENSE = "dense"
ALLOCATION = "allocation.json"
PACKED, MASKS = "packed.safetensors", "masks.npz"
_TOLD, _ROW = "layers.jsonl", "row.json"


class Setting(NamedTuple):
    """What a run is about.

    Attributes:
      config: checked.
      model: the dense one.
      calibration: (sequences, length) tokens.
      test: corpus -> (sequences, length) tokens.
      rules: of the linear layers, with axes.
      allocation: their sparsities, None where the rules have them.
    """

    config: Any
    model: LanguageModel
    calibration: np.ndarray
    test: dict[str, np.ndarray]
    rules: list[js.Rule]
    allocation: Allocation | None = None


def run(config: Any, path: str, overwrite: bool = False, html: bool = True) -> dict[str, Any]:
    """Prunes a language model as a config says, or goes on where a killed run stopped.

    Args:
      config: see `config.get_config`.
      path: the run's folder. It receives config.json, allocation.json where that is searched,
        rows/, packed.safetensors (bfloat16, what the masks keep), masks.npz, report.html and at
        the very end report.json.
      overwrite: delete a run that is there first.
      html: whether to draw report.html.

    Returns:
      What report.json holds: `rows`, the dense model's and one of every stage, with perplexity by
      corpus, sparsity by the masks, `prune_seconds`; `speed`, as `speed.measure` has it, and
      `samples`; peak memory, the machine, the config.

    Raises:
      ValueError: a config without meaning, a corpus too short for its windows, a pattern that
        does not divide a weight, a folder that is not for this config, or in use.
      DownloadError: model or corpus could not be fetched.
      OSError: a file cannot be written; it is named. The same call goes on from there.
    """
    own.check(config)
    reads = workdir.finished(pathlib.Path(path)) and not overwrite
    with contextlib.nullcontext() if reads else lock.held(path):
        folder = workdir.check_workdir(path, configs.to_json(config), overwrite)
        if workdir.finished(folder) and not overwrite:
            _LOG.info("%s is finished; --overwrite starts it again", folder)
        else:
            setting = _prepare(config)  # a mistake here begins no run, and deletes none
            _run(setting, workdir.open_workdir(path, configs.to_json(config), overwrite), html)
        return workdir.read_report(folder)


def _prepare(config: Any) -> Setting:
    """Loads model and texts; what cannot be done is said here, before the long work."""
    _LOG.info("loading the model %r", config.model)
    model, length = models.load(config.model), config.calibration.length
    written = len(model.encode(config.generation.prompt)) + config.generation.tokens
    for key, tokens in (("calibration.length", length), ("generation.tokens", written)):
        if tokens > model.longest:
            raise ValueError(
                f"config.{key}: {tokens} tokens with all before them; {config.model} is for "
                f"{model.longest} at most"
            )
    names, tested = config.calibration.corpora, config.test
    _LOG.info("reading %s", ", ".join(dict.fromkeys((*names, *tested.corpora))))
    each = config.calibration.sequences // len(names)
    parts = [corpora.calibration(name, model.encode, each, length, config.seed) for name in names]
    # Of every corpus some in each batch.
    calibration = np.stack(parts, axis=1).reshape(-1, length)
    test = {
        name: corpora.test(name, model.encode, tested.sequences, length) for name in tested.corpora
    }
    first = jnp.asarray(calibration[: config.batch_size])
    rules = js.read_axes([own.rule(config)], model.apply, model.params, first)
    resolve(rules, model.params)
    allocation = None
    if config.distribution not in (own.UNIFORM, own.EXACT):
        allocation = Allocation.load(config.distribution)
        js.targets(rules, model.params, distribution=allocation)
    return Setting(config, model, calibration, test, rules, allocation)


def _run(setting: Setting, folder: pathlib.Path, html: bool) -> None:
    config, model = setting.config, setting.model
    rows = _Rows(folder / "rows")
    rows.add(DENSE, lambda: _tested(setting, model.params) | {"sparsity": 0.0})
    if config.distribution == own.EXACT:
        setting = setting._replace(allocation=_allocated(setting, folder))
    found = None
    stages = methods.measured(methods.chain(config.criterion, config.stages))
    for label, criterion in stages.items():

        def prune(label=label, criterion=criterion):
            nonlocal found
            found, row = _prune(setting, label, criterion, folder)
            return row | _tested(setting, found.params)

        found = None
        rows.add(label, prune)
    if found is None:  # a killed run had its last row already
        found, _ = _prune(setting, label, criterion, folder)
    if methods.FIT in config.stages:
        label = f"{label} + {methods.FIT}"
        pruned, fitted = found, None

        def fit():
            nonlocal fitted
            fitted, row = _fit(setting, pruned, folder / "layers" / methods.FIT)
            return row | _tested(setting, fitted.params)

        rows.add(label, fit)
        found = fitted or _fit(setting, pruned, folder / "layers" / methods.FIT)[0]
    report = {
        "method": label,
        "model": config.model,
        "model_source": model.source,
        "pattern": config.pattern,
        "allocation": setting.allocation and setting.allocation.to_dict(),
        "rows": rows.rows,
        "pruned_leaves": len(found.masks),
        "pruned_parameters": sum(mask.size for mask in found.masks.values()),
        "calibration_sequences": len(setting.calibration),
        "test_sequences": config.test.sequences,
        "length": config.calibration.length,
        **_written(setting, found, folder),
        "peak_memory_bytes": max([_peak(), *(row["peak_memory_bytes"] for row in rows.rows)]),
        "environment": outcome.environment(),
        "config": configs.to_json(config),
    }
    if html:
        from experiments.oneshot import page  # late: matplotlib, which only this needs

        workdir.write_text(folder / "report.html", page.build(report))
    shutil.rmtree(folder / "layers")  # as large as the model for every stage
    workdir.write_json(folder / workdir.REPORT, report)


class _Rows:
    """Rows of the report, each on disk once it is there: a killed run makes only those missing."""

    def __init__(self, folder: pathlib.Path):
        self.rows: list[dict[str, Any]] = []
        self._folder = folder
        folder.mkdir(exist_ok=True)

    def add(self, stage: str, make: Any) -> None:
        """Reads the next row, or makes it."""
        file = self._folder / f"{len(self.rows)}.json"
        if not file.exists():
            row = {"stage": stage} | make() | {"peak_memory_bytes": _peak()}
            workdir.write_json(file, row)
            _LOG.info("%s: perplexity %s", stage, row["perplexity"])
        self.rows.append(workdir.read_json(file, "delete it: it is made again"))


def _tested(setting: Setting, params: Any) -> dict[str, Any]:
    size = setting.config.batch_size
    start = time.perf_counter()
    found = {
        name: perplexity(setting.model.apply, params, _batches(windows, size))
        for name, windows in setting.test.items()
    }
    # JSON knows neither infinity nor NaN.
    finite = {name: value if np.isfinite(value) else None for name, value in found.items()}
    return {"perplexity": finite, "test_seconds": time.perf_counter() - start}


def _allocated(setting: Setting, folder: pathlib.Path) -> Allocation:
    """The sparsities by which layers lose least together; found once, and kept in the folder."""
    file, config = folder / ALLOCATION, setting.config
    if not file.exists():
        batches = _batches(setting.calibration, config.batch_size)
        allocating.best(config, setting.model, batches, setting.rules).save(file)
    return Allocation.load(file)


def _prune(
    setting: Setting, label: str, criterion: Any, folder: pathlib.Path
) -> tuple[OneShot, dict[str, Any]]:
    """Prunes by one stage; the folder has what is pruned so far, layer by layer."""
    config, model = setting.config, setting.model
    _LOG.info("pruning %s by %s", config.pattern, label)
    place = folder / "layers" / str(len(label.split(" + ")))
    place.mkdir(parents=True, exist_ok=True)
    before = _told(place)

    def spent(key: str) -> float:
        """By killed runs, which worked for what they told, too."""
        return sum(line.get(key, 0.0) for line in before)

    with contextlib.ExitStack() as stack:
        bar = stack.enter_context(tqdm(unit="layer", disable=None))
        told = stack.enter_context((place / _TOLD).open("a"))
        start, clock = time.perf_counter(), time.process_time()
        lap = clock

        def tell(done: Pruned) -> None:
            nonlocal lap
            line = {"path": done.path, "error": done.error, "seconds": done.seconds}
            now = time.process_time()
            told.write(json.dumps(line | {"cpu_seconds": now - lap}) + "\n")
            lap = now
            told.flush()
            bar.total, bar.n = done.total, done.number
            error = "" if done.error is None else f"{done.error:.4f}"
            bar.set_postfix_str(f"{done.path} {error} {done.seconds:.1f} s")

        found = prune_oneshot(
            model.apply,
            model.params,
            [(batch,) for batch in _batches(setting.calibration, config.batch_size)],
            setting.rules,
            criterion=criterion,
            distribution=setting.allocation,
            per=own.competing(config),
            on_pruned=tell,
            folder=place,
        )
    size = sum(mask.size for mask in found.masks.values())
    kept = sum(int(np.count_nonzero(mask)) for mask in found.masks.values())
    # A layer that was told of before a kill, and not stored yet, is told of twice.
    errors = {line["path"]: line["error"] for line in _told(place)}
    known = [error for error in errors.values() if error is not None]
    return found, {
        "sparsity": 1 - kept / size,
        "layer_loss": float(np.mean(known)) if known else None,
        "layer_loss_by": measured_by(criterion),
        "prune_seconds": time.perf_counter() - start + spent("seconds"),
        "prune_cpu_seconds": time.process_time() - clock + spent("cpu_seconds"),
    }


def _fit(setting: Setting, pruned: OneShot, folder: pathlib.Path) -> tuple[OneShot, dict[str, Any]]:
    """The last stage. It is done as a whole: killed in its middle it begins again."""
    config, model = setting.config, setting.model
    file, parts, errors = folder / "fitted.npz", model.parts(), []
    start, clock = time.perf_counter(), time.process_time()
    if file.exists():
        with np.load(file) as kept:
            leaves = {path: jnp.asarray(kept[path]) for path in kept.files}
        row = workdir.read_json(folder / _ROW, "delete the folder: it is fitted again")
        return OneShot(replace_by_path(pruned.params, leaves), pruned.masks), row
    folder.mkdir(exist_ok=True)
    _LOG.info("fitting %d parts", len(parts))
    with tqdm(total=len(parts), unit="part", disable=None) as bar:

        def tell(number: int, part: Fitted) -> None:
            del number
            errors.append((float(part.before), float(part.after)))
            bar.set_postfix_str("{:.4f} -> {:.4f}".format(*errors[-1]))
            bar.update()

        params = fit_parts(
            parts,
            pruned.params,
            model.params,
            pruned.masks,
            [jnp.asarray(batch) for batch in _batches(setting.calibration, config.batch_size)],
            optimizer=optax.adam(config.fit.rate),
            steps=config.fit.steps,
            on_part=tell,
        )
    size = sum(mask.size for mask in pruned.masks.values())
    row = {
        "sparsity": 1 - sum(int(np.count_nonzero(m)) for m in pruned.masks.values()) / size,
        "layer_loss": None,
        "layer_loss_by": None,
        "part_loss": [float(mean) for mean in np.mean(errors, axis=0)],
        "prune_seconds": time.perf_counter() - start,
        "prune_cpu_seconds": time.process_time() - clock,
    }
    workdir.write_json(folder / _ROW, row)  # before the weights: these say that all is there
    with replacing(file) as out:
        leaves = {path: np.asarray(leaf) for path, leaf in leaves_by_path(params).items()}
        np.savez(out, allow_pickle=False, **leaves)
    return OneShot(params, pruned.masks), row


def _told(place: pathlib.Path) -> list[dict[str, Any]]:
    """What was told of every layer pruned so far, those of killed runs among them."""
    file = place / _TOLD
    return list(map(json.loads, file.read_text().splitlines())) if file.exists() else []


def _written(setting: Setting, found: OneShot, folder: pathlib.Path) -> dict[str, Any]:
    """Saves the model packed; what it writes, and how fast."""
    config, model = setting.config, setting.model
    forms = speed.forms(model.params, found.params, found.masks, setting.rules)
    js.save_safetensors(folder / PACKED, forms["packed bfloat16"])
    with replacing(folder / MASKS) as file:
        masks = {path: np.asarray(mask) for path, mask in found.masks.items()}
        np.savez_compressed(file, allow_pickle=False, **masks)
    new, prompt = config.generation.tokens, config.generation.prompt
    if not new:
        return {"speed": [], "samples": {}}
    _LOG.info("writing %d tokens with %s", new, ", ".join(forms))
    tokens = jnp.asarray([model.encode(prompt)], jnp.int32)
    write = speed.writer(model, new)
    rows, written = speed.measure(write, forms, tokens, config.generation.rounds)
    samples = {name: model.decode(np.asarray(ids)[0]) for name, ids in written.items()}
    return {"speed": rows, "samples": {"prompt": prompt, **samples}}


def _batches(windows: np.ndarray, size: int) -> list[np.ndarray]:
    return [windows[begin : begin + size] for begin in range(0, len(windows), size)]


def _peak() -> int:
    """The most memory that this process had, in bytes."""
    found = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return found if sys.platform == "darwin" else 1024 * found
