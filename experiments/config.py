"""Loading, checking and comparing configs."""

import json
import pathlib
import runpy
from collections.abc import Iterator, Mapping
from typing import Any

from experiments.configs import base
from experiments.registry import near_misses

# An ml_collections.ConfigDict. Its keys differ by config: to a type checker, anything.
Config = Any


def load(path: str, overrides: Mapping[str, Any] | None = None) -> Config:
    """The config of a file, with some keys changed.

    Args:
      path: a Python file with ``get_config()``.
      overrides: dotted key -> value.

    Raises:
      ValueError: no such file, or an unknown key (with near misses).
    """
    if not pathlib.Path(path).is_file():
        siblings = [str(file) for file in pathlib.Path(path).parent.glob("*.py")]
        raise ValueError(f"no such config: {path!r}{near_misses(path, siblings)}")
    config = runpy.run_path(path)["get_config"]()
    for key, value in (overrides or {}).items():
        check_key(config, key)
        config.update_from_flattened_dict({key: value})
    return check(config)


def check_key(config: Config, key: str) -> None:
    """Raises a ValueError with near misses unless the dotted ``key`` exists."""
    known = [name for name, _ in flatten(config.to_dict(), groups=True)]
    if key not in known:
        raise ValueError(f"unknown config key {key!r}{near_misses(key, known)}")


def check(config: Config) -> Config:
    """Returns ``config``; raises where a top-level key is unknown or missing.

    The keys below ``data``, ``model``, ``optimizer`` and ``recipe`` are options of
    registered factories, which check them in turn.
    """
    known = base.get_config().keys()
    for key in config:
        if key not in known:
            raise ValueError(f"unknown config key {key!r}{near_misses(key, known)}")
    if missing := sorted(set(known) - set(config)):
        raise ValueError(f"the config lacks {', '.join(missing)}; start from configs/base.py")
    for key in ("steps", "batch_size", "log_every", "eval_every", "checkpoint_every"):
        if config[key] < 1:
            raise ValueError(f"config.{key} must be at least 1, not {config[key]}")
    return config


def flatten(tree: Mapping[str, Any], prefix: str = "", groups: bool = False) -> Iterator[tuple]:
    """Yields (dotted key, value) of a nested mapping; the groups themselves if asked."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            if groups:
                yield prefix + key, value
            yield from flatten(value, f"{prefix}{key}.", groups)
        else:
            yield prefix + key, value


def to_json(config: Config) -> dict[str, Any]:
    """The config as plain JSON values; tuples become lists."""
    return json.loads(json.dumps(config.to_dict()))


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """``"key: old -> new"`` for every leaf that differs between two JSON configs."""
    old, new = dict(flatten(old)), dict(flatten(new))
    absent = "(absent)"
    return [
        f"{key}: {old.get(key, absent)!r} -> {new.get(key, absent)!r}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key, absent) != new.get(key, absent)
    ]
