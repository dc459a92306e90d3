"""The training loop: logs, evaluates, checkpoints, resumes."""

import contextlib
import logging
import pathlib
import time

import numpy as np
from tqdm import tqdm

import jaxsparse as js
from experiments import config as configs
from experiments import experiment as experiments
from experiments import lock, outcome, permutation, structure, workdir
from experiments.metrics import MetricWriter

_LOG = logging.getLogger(__name__)


def run(config: configs.Config, path: str, overwrite: bool = False, html: bool = True) -> dict:
    """Trains a config in a folder, or goes on where a killed run stopped.

    Args:
      config: see ``configs/base.py``.
      path: the run's folder. It receives config.json, metrics.jsonl, tensorboard/,
        checkpoints/, weights.npz, masks.npz, report.html and at the very end
        report.json.
      overwrite: delete a run that is there first.
      html: whether to draw report.html.

    Returns:
      What report.json holds, see ``outcome.write``.

    Raises:
      ValueError: a config without meaning, a folder that is not for this config, that
        another process uses, or whose files are damaged.
      OSError: a file cannot be written; it is named. The same call goes on from there.
    """
    clock = _Clock()
    _LOG.info("preparing data %r and model %r", config.data.name, config.model.name)
    experiment = experiments.build(configs.check(config))
    # What is finished is only read, on a disk for reading, too.
    reads = workdir.finished(pathlib.Path(path)) and not overwrite
    with contextlib.nullcontext() if reads else lock.held(path):
        folder = workdir.open_workdir(path, configs.to_json(config), overwrite)
        if workdir.finished(folder):
            _LOG.info("%s is finished; --overwrite starts it again", folder)
        else:
            state, history = _fit(experiment, folder, clock)
            _LOG.info("measuring the result")
            outcome.write(experiment, state, history, folder, html)
        return workdir.read_report(folder)


def _fit(experiment: experiments.Experiment, folder: pathlib.Path, clock: "_Clock"):
    """Runs the steps that are left; returns the last state and all records."""
    config, steps = experiment.config, experiment.config.steps
    # The last step before the masks begin is where the dense model is measured.
    milestones = (steps, experiment.recipe.dense_until, experiment.recipe.structure_at)
    shown = ("loss", experiment.progress_metric, "sparsity", "step_ms")
    state, begin = experiment.init(), 0
    with contextlib.ExitStack() as stack:
        checkpointer = stack.enter_context(
            js.checkpoint.Checkpointer(folder / "checkpoints", every=config.checkpoint_every)
        )
        if (restored := checkpointer.restore_latest(state)) is not None:
            begin, state = restored
            _LOG.info("%s resumes after step %d", folder, begin)
        writer = stack.enter_context(contextlib.closing(MetricWriter(folder, begin)))
        bar = stack.enter_context(tqdm(total=steps, initial=begin, unit="step", disable=None))
        if begin < steps:
            _LOG.info("compiling, then steps %d to %d", begin + 1, steps)
        clock.resume(begin, writer.history[-1]["seconds"] if writer.history else 0.0)
        for number in range(begin, steps):
            inputs, targets = experiment.batches(number)
            state, measured = experiment.step(state, inputs, targets, np.int32(number))
            done = number + 1
            evaluates = done % config.eval_every == 0 or done in milestones
            if evaluates or done % config.log_every == 0:
                record = {name: float(value) for name, value in measured.items()}
                record["step_ms"] = clock.lap(done)
                record["sparsity"] = float(experiment.sparsity(state))
                for path, share in experiment.leaf_sparsity(state).items():
                    record[f"sparsity/{path}"] = float(share)
                record["learning_rate"] = float(experiment.recipe.learning_rate(number))
                if evaluates:
                    record |= experiment.evaluate(state)
                writer.write(done, **record, seconds=clock.total())
                clock.start_lap(done)
                brief = {name: f"{record[name]:.3g}" for name in shown}
                bar.set_postfix(brief)
                if bar.disable and evaluates:  # into a file, where no bar is drawn
                    _LOG.info("step %d of %d: %s", done, steps, brief)
            bar.update()
            if done == experiment.recipe.dense_until and experiment.permute is not None:
                state, report = experiment.permute(state)
                permutation.write(report, folder)
                clock.start_lap(done)
            if done == experiment.recipe.structure_at and experiment.resolve is not None:
                state, report = experiment.resolve(state)
                structure.write(report, folder)
                _LOG.info("%s", report)
                clock.start_lap(done)
            # After the records of this step, so that a checkpoint never outruns them.
            if done < steps:
                checkpointer.save(done, state)
        return state, writer.history


class _Clock:
    """Seconds of the run, those before a kill included, and milliseconds per step."""

    def __init__(self):
        self._start = time.perf_counter()

    def resume(self, step: int, before: float) -> None:
        """Begins at ``step``, after ``before`` seconds in earlier processes."""
        self._start -= before
        self.start_lap(step)

    def start_lap(self, step: int) -> None:
        """Step times are measured from here; logging and evaluation stay out of them."""
        self._lap, self._step = time.perf_counter(), step

    def lap(self, step: int) -> float:
        """Mean milliseconds per step since ``start_lap``."""
        return 1e3 * (time.perf_counter() - self._lap) / max(1, step - self._step)

    def total(self) -> float:
        """Seconds of the run so far, compilation included."""
        return time.perf_counter() - self._start
