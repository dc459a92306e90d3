"""The keys of a run of `experiments.search`, and their mistakes, before any work."""

import functools
from typing import Any

from ml_collections import ConfigDict

from experiments import config as configs
from experiments.data import DATASETS
from experiments.models import MODELS
from experiments.registry import near_misses
from experiments.search.costs import KINDS
from experiments.search.methods import METHODS

# Keys whose options belong to factories.
_OPEN = {"data": DATASETS, "model": MODELS}


def get_config(method: str = "uniform") -> Any:
    """MobileNetV1 on 10,000 images of MNIST, half of its multiplications, by a method."""
    config = ConfigDict()
    # It chooses first weights, order of examples, and what a search draws.
    config.seed = 0
    config.data = ConfigDict({"name": "mnist10k", "validation_fraction": 0.2})
    config.model = ConfigDict({"name": "mobilenet", "width": 1.0, "stem_stride": 2})
    # Folder of a finished run of `experiments.run` with the same data and model, whose weights
    # are pruned; "" trains them first.
    config.init_from = ""
    config.train = ConfigDict({"steps": 1200, "batch_size": 32, "peak": 4e-3})
    # A name of `methods.METHODS`; `search` has its options.
    config.method = method
    options = METHODS.options(method).values()
    config.search = ConfigDict({option.name: option.default for option in options})
    # What the model may cost: "flops", "bytes" or "latency"; `share` of what the dense one does,
    # or, with `width` above 0, what it does with all groups at that share of their units.
    config.budget = ConfigDict({"of": "flops", "share": 0.5, "width": 0.0})
    # Groups keep multiples of it, and no less than `lowest` of their units.
    config.divisor = 8
    config.lowest = 0.1
    # Validation examples that the search sees; the test part is for the report alone.
    config.examples = 500
    # The same for every method, after the search.
    config.tuning = ConfigDict({"steps": 200, "batch_size": 32, "peak": 2e-3})
    # Examples of a forward pass that is timed, how often every form of the model runs, and the
    # file of the table that latency is predicted by: "" is one in the run's folder. Runs that
    # share it measure each product once, at `steps` widths of a group: 832 of MobileNetV1 are all
    # there can be with 8. Without `predict` only a budget of latency needs it.
    config.latency = ConfigDict(
        {"batch": 32, "rounds": 30, "table": "", "steps": 8, "predict": True}
    )
    return config


def variant(method: str, which: str = "") -> Any:
    """The config of a method as the files in configs/ have it.

    Args:
      method: a name of `methods.METHODS`.
      which: what stands behind the colon of a config: a share of the FLOPs such as "0.3",
        "latency" and a share as in "latency:0.3", or "digits", a small model on small images in
        seconds. "" is half of the FLOPs.

    Raises:
      ValueError: anything else.
    """
    config = get_config(method)
    if which == "digits":
        config.data.name = "digits"
        config.model.update(width=0.5, stem_stride=1, blocks=2)
        config.train.update(steps=40, peak=1e-2)
        config.tuning.update(steps=10, peak=2e-3)
        config.latency.update(batch=8, rounds=3, predict=False)
        config.update(examples=200)
        return config
    of, _, share = which.rpartition(":")
    try:
        config.budget.of = of or config.budget.of
        config.budget.share = float(share) if share else config.budget.share
    except ValueError:
        raise ValueError(
            f"{which!r} is no share of the FLOPs such as 0.3, no latency:0.3 and not digits"
        ) from None
    return config


def check(config: Any) -> Any:
    """Returns `config`.

    Raises:
      ValueError: a key that is unknown or missing, or a value that cannot be meant.
    """
    known = dict(configs.flatten(get_config().to_dict(), groups=True))
    given = dict(configs.flatten(config.to_dict(), groups=True))
    if config.get("method") not in METHODS.names:
        method = config.get("method", "")
        raise ValueError(f"unknown config.method {method!r}{near_misses(method, METHODS.names)}")
    for group, table in _OPEN.items():
        if (name := config[group].name) not in table.names:
            raise ValueError(
                f"unknown config.{group}.name {name!r}{near_misses(name, table.names)}"
            )
    options = {
        "search": METHODS.options(config.method),
        **{group: table.options(config[group].name) for group, table in _OPEN.items()},
    }
    for key in given:
        group, _, option = key.partition(".")
        allowed = option in options.get(group, ()) or (group == "data" and option == "validation")
        if key not in known and not allowed:
            names = [*known, *(f"{group}.{name}" for name in options.get(group, ()))]
            raise ValueError(f"unknown config key {key!r}{near_misses(key, names)}")
    needed = {key for key in known if key.partition(".")[0] not in options or "." not in key}
    if missing := sorted(needed - given.keys()):
        raise ValueError(
            f"the config lacks {', '.join(missing)}; start from experiments/search/config.py"
        )
    least = {"seed": 0, "divisor": 1, "examples": 1, "train.steps": 1, "tuning.steps": 0}
    least |= {"train.batch_size": 1, "tuning.batch_size": 1}
    least |= {"latency.batch": 1, "latency.rounds": 1, "latency.steps": 1}
    configs.check_least(given, least)
    for key in ("train.peak", "tuning.peak"):
        if not given[key] > 0:
            raise ValueError(f"config.{key} must be above 0, not {given[key]}")
    if config.budget.of not in KINDS.names:
        known = ", ".join(KINDS.names)
        raise ValueError(f"config.budget.of is {config.budget.of!r}; known: {known}")
    if not 0 < config.budget.share <= 1:
        raise ValueError(f"config.budget.share is a share in (0, 1], not {config.budget.share}")
    if not 0 <= config.budget.width <= 1:
        raise ValueError(f"config.budget.width is a share in [0, 1], not {config.budget.width}")
    if not 0 <= config.lowest < 1:
        raise ValueError(f"config.lowest is a share in [0, 1), not {config.lowest}")
    return config


load = functools.partial(configs.load, checker=check)
