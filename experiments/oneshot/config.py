"""The keys of a run of `experiments.oneshot`, and their mistakes, before any work."""

import functools
import pathlib
from typing import Any, Literal

from ml_collections import ConfigDict

import jaxsparse as js
from experiments import config as configs
from experiments.data import corpora
from experiments.models.llama import LINEAR
from experiments.oneshot import methods, models
from experiments.registry import near_misses
from experiments.rules import parse_pattern
from jaxsparse.allocation import Allocation

# Pattern -> sparsity where nothing is said of it.
PATTERNS = {"unstructured": 0.5, "2:4": 0.5, "4:8": 0.5, "4x16": 0.3}
UNIFORM, EXACT = "uniform", "exact"
PARTS = ("auto", "layer", "output")


def get_config(criterion: str = "wanda", pattern: str = "unstructured") -> Any:
    """SmolLM2 pruned by a criterion, calibrated and tested on reviews and the handbook."""
    config = ConfigDict()
    # It chooses the calibration windows.
    config.seed = 0
    # "smollm2", a GGUF file of a Llama, or "tiny": random, for tests.
    config.model = "smollm2"
    config.criterion = criterion
    # What follows the criterion: "swaps", "reconstruction", and as the last one "fit". Every
    # stage is a row of the report.
    config.stages = ()
    # Of the stage "fit": Adam's steps for each part of a block, and its rate.
    config.fit = ConfigDict({"steps": 100, "rate": 1e-4})
    # As rules spell it, for all linear layers of all blocks; embeddings, norms and head stay.
    config.pattern = pattern
    # n:m has its own, and no other.
    config.sparsity = _own_sparsity(parse_pattern(pattern)) or PATTERNS.get(pattern, 0.5)
    # How the layers share it: "uniform"; "exact", the shares by which they lose least together,
    # from what each loses at each of the `levels` in the dense model; or a file of an
    # `Allocation`, which has its own sparsities in the place of `sparsity`.
    config.distribution = UNIFORM
    config.levels = tuple(n / 20 for n in range(19))
    # What competes in an unstructured kernel: all of its "layer", or the entries of an "output";
    # "auto" is an output for Wanda, as its authors have it, and the layer for all else.
    config.per = "auto"
    # Windows of `length` tokens, as many of each corpus: "reviews", "handbook", "docstrings" or
    # a text file.
    config.calibration = ConfigDict(
        {"corpora": ("reviews", "handbook"), "sequences": 24, "length": 256}
    )
    # So many windows of each corpus, all texts that no calibration sees.
    config.test = ConfigDict({"corpora": ("reviews", "handbook"), "sequences": 16})
    # Sequences that run together.
    config.batch_size = 4
    # What is written, for the tokens per second and the sample; 0 tokens write nothing.
    config.generation = ConfigDict(
        {"prompt": "The most important thing about a good book is", "tokens": 128, "rounds": 3}
    )
    return config


def check(config: Any) -> Any:
    """Returns `config`.

    Raises:
      ValueError: a key that is unknown or missing, or a value that cannot be meant.
    """
    known = dict(configs.flatten(get_config().to_dict()))
    given = dict(configs.flatten(config.to_dict()))
    for key in given:
        if key not in known:
            raise ValueError(f"unknown config key {key!r}{near_misses(key, known)}")
    if missing := sorted(known.keys() - given.keys()):
        raise ValueError(
            f"the config lacks {', '.join(missing)}; start from experiments/oneshot/config.py"
        )
    least = {"calibration.sequences": 1, "calibration.length": 2, "test.sequences": 1}
    least |= {
        "fit.steps": 1,
        "batch_size": 1,
        "seed": 0,
        "generation.tokens": 0,
        "generation.rounds": 1,
    }
    configs.check_least(given, least)
    if not config.fit.rate > 0:
        raise ValueError(f"config.fit.rate must be above 0, not {config.fit.rate}")
    if not 0 < config.sparsity < 1:
        raise ValueError(f"config.sparsity is a share in (0, 1), not {config.sparsity}")
    if config.per not in PARTS:
        raise ValueError(f"config.per is {config.per!r}; known: {', '.join(PARTS)}")
    models.check_name(config.model)
    methods.chain(config.criterion, config.stages)
    pattern = rule(config).pattern
    own = _own_sparsity(pattern)
    if own is not None and abs(config.sparsity - own) > 1e-6:
        raise ValueError(
            f"config.sparsity = {config.sparsity}, but the pattern {config.pattern} has "
            f"{own:.6g}, whatever is asked for; that number would work, or another pattern"
        )
    _check_distribution(config, own)
    if config.per == "output" and not isinstance(pattern, js.Unstructured):
        raise ValueError(
            f"config.per = 'output' is for the pattern unstructured, whose entries compete, not "
            f"for {config.pattern}; auto would work"
        )
    _check_corpora(config)
    return config


load = functools.partial(configs.load, checker=check)


def _check_distribution(config: Any, own: float | None) -> None:
    if config.distribution == UNIFORM:
        return
    if own is not None:
        raise ValueError(
            f"config.distribution = {config.distribution!r}, but the pattern {config.pattern} has "
            f"the same sparsity everywhere; {UNIFORM} would work, or another pattern"
        )
    if config.distribution == EXACT:
        levels = config.levels
        if not levels or not all(0 <= level < 1 for level in levels):
            raise ValueError(f"config.levels = {levels!r}: sparsities in [0, 1) would work")
        if max(levels) < config.sparsity:
            raise ValueError(
                f"config.sparsity = {config.sparsity} is above all config.levels, of which "
                f"{max(levels)} is the largest"
            )
    elif not pathlib.Path(config.distribution).is_file():
        raise ValueError(
            f"config.distribution is {config.distribution!r}, and no such file is there; "
            f"{UNIFORM}, {EXACT}, or a file that js.allocation.Allocation.save wrote, would work"
        )
    else:
        Allocation.load(config.distribution)


def _own_sparsity(pattern: js.Pattern | None) -> float | None:
    """The sparsity that a pattern fixes, None where it leaves that open."""
    return 1 - pattern.n / pattern.m if isinstance(pattern, js.NM) else None


def competing(config: Any) -> Literal["layer", "output"]:
    """`config.per`, or what "auto" stands for."""
    if config.per != "auto":
        return config.per
    unstructured = isinstance(rule(config).pattern, js.Unstructured)
    return "output" if unstructured and config.criterion == "wanda" else "layer"


def rule(config: Any) -> js.Rule:
    """The rule of all linear layers of all blocks, without a sparsity where that is shared out."""
    pattern = parse_pattern(config.pattern)
    open_ = isinstance(pattern, js.NM) or config.distribution != UNIFORM
    sparsity = None if open_ else config.sparsity
    return js.Rule(LINEAR, pattern, sparsity=sparsity)


def _check_corpora(config: Any) -> None:
    for part in ("calibration", "test"):
        names = config[part].corpora
        if not names or len(set(names)) < len(names):
            raise ValueError(f"config.{part}.corpora = {names!r}: one or more names, each once")
        for name in names:
            corpora.check_name(name)
    sequences, names = config.calibration.sequences, config.calibration.corpora
    if sequences % len(names):
        raise ValueError(
            f"config.calibration.sequences = {sequences} are to be as many of each of "
            f"{len(names)} corpora; a multiple of {len(names)} would work"
        )
    for key, total in (
        ("calibration.sequences", sequences),
        ("test.sequences", config.test.sequences),
    ):
        # All batches have one shape, and every sequence counts.
        if total % config.batch_size:
            raise ValueError(
                f"config.{key} = {total} is no multiple of config.batch_size = {config.batch_size}"
            )
