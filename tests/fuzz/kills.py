"""Kills a run at random points, and compares what it ends with: bit for bit, or an error.

    python -m tests.fuzz.kills --points 100 [--seed 0]

A small run is started, killed with SIGKILL, and started again, until it has been
killed as often as asked; whenever it comes to its end, its weights and masks are
compared with those of a run that nobody killed, and the next one begins. Half of the
kills come after a random time, anywhere from the first import to the report. The other
half come at a random touch of a file in the workdir (opened, renamed, removed), where a
half-done change would show. Every process is a fork of one that has imported
everything and computed nothing, so a point takes a second or two.
"""

import argparse
import json
import os
import pathlib
import random
import signal
import sys
import tempfile
import time
import warnings

import jax
import numpy as np
import sklearn.datasets  # noqa: F401  here rather than in every fork

from experiments import config as configs
from experiments import latency, train
from experiments.metrics import read

TOUCHES = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "shutil.rmtree")
STEPS = 40


def config() -> configs.Config:
    """A run whose every step is checkpointed or logged, masks changing half of the time."""
    made = configs.load("experiments/configs/base.py")
    made.steps, made.batch_size, made.sparsity = STEPS, 16, 0.75
    made.data.name, made.model.hidden = "digits", (32,)
    made.rules = ((r"layers_0/kernel", "4x16"),)
    made.recipe.name, made.recipe.begin, made.recipe.end = "magnitude", 5, 30
    made.log_every, made.eval_every, made.checkpoint_every = 2, 20, 3
    return configs.check(made)


def child(folder: pathlib.Path, touches: int | None) -> int:
    """Starts a run in a fork; it kills itself at the given touch of a file, if any."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        log = os.open(folder.parent / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1), os.dup2(log, 2)
        latency.measure = lambda *_: {}  # it writes nothing
        if touches is not None:
            _die_at(folder, touches)
        train.run(config(), str(folder), html=False)
        code = 0
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
    finally:
        os._exit(code)


def _die_at(folder: pathlib.Path, touches: int) -> None:
    left = touches

    def hook(event, arguments):
        nonlocal left
        if event in TOUCHES and str(arguments[0]).startswith(str(folder)):
            left -= 1
            if left <= 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def run(folder: pathlib.Path, seconds: float | None = None, touches: int | None = None) -> bool:
    """Runs until the end or the kill; returns whether it was the kill.

    Raises:
      RuntimeError: it ended with an error of its own.
    """
    pid = child(folder, touches)
    deadline = None if seconds is None else time.monotonic() + seconds
    while True:
        done, status = os.waitpid(pid, os.WNOHANG if deadline else 0)
        if done:
            break
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGKILL)
            deadline = None
        time.sleep(0.002)
    if os.WIFSIGNALED(status):
        return True
    if os.WEXITSTATUS(status):
        raise RuntimeError(f"{folder}: {(folder.parent / 'log').read_text()[-2000:]}")
    return False


def differences(folder: pathlib.Path, reference: pathlib.Path) -> list[str]:
    """What is not as in a run that nobody killed."""
    found = []
    for name in ("weights.npz", "masks.npz"):
        with np.load(reference / name) as expected, np.load(folder / name) as arrays:
            if set(arrays) != set(expected):
                found.append(f"{name}: other arrays")
            found += [
                f"{name}: {path}"
                for path in set(expected) & set(arrays)
                if expected[path].tobytes() != arrays[path].tobytes()
            ]
    steps, wanted = ([r["step"] for r in read(f / "metrics.jsonl")] for f in (folder, reference))
    if steps != wanted:
        found.append(f"metrics.jsonl: steps {steps}")
    times = {"seconds", "step_ms"}
    for one, two in zip(*(read(f / "metrics.jsonl") for f in (folder, reference)), strict=False):
        found += [
            f"metrics.jsonl, step {one['step']}: {k}"
            for k in two
            if k not in times and one.get(k) != two[k]
        ]
    json.loads((folder / "report.json").read_text())
    found += [f"{file.name} is left" for file in folder.glob(".lock")]
    return found


def campaign(root: pathlib.Path, points: int, draw: random.Random) -> tuple[int, int, list[str]]:
    """Kills runs below a folder; returns how often, in how many runs, and what went wrong."""
    # Filled by the first run; compiling is most of what a point would take.
    jax.config.update("jax_compilation_cache_dir", str(root / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    run(root / "whole")
    began = time.monotonic()
    run(root / "again")
    seconds = time.monotonic() - began
    failures = differences(root / "again", root / "whole")
    kills, runs, folder = 0, 0, root / "0"
    while kills < points or folder.exists():
        point = {}
        if kills < points and draw.random() < 0.5:
            point = {"seconds": seconds * draw.random()}
        elif kills < points:
            point = {"touches": draw.randint(1, 120)}
        try:
            killed = run(folder, **point)
            if not killed:
                failures += [f"run {runs}: {what}" for what in differences(folder, root / "whole")]
        except RuntimeError as error:
            failures.append(f"run {runs}, after {kills} kills, last at {point}: {error}")
            killed = False
        kills += killed
        if not killed:
            runs += 1
            folder = root / str(runs)
        if len(failures) > 20:
            break
    return kills, runs, failures


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.kills", description=__doc__)
    parser.add_argument("--points", type=int, default=100, help="how many kills")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as directory:
        kills, runs, failures = campaign(
            pathlib.Path(directory), options.points, random.Random(options.seed)
        )
    print(f"{kills} kills in {runs} runs, {len(failures)} failures", *failures, sep="\n")
    return bool(failures)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
