"""Loading, checking and comparing configs."""

import inspect
import json
import pathlib
import runpy
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from experiments import data, models, optimizers, recipes
from experiments.configs import base
from experiments.registry import near_misses

# An ml_collections.ConfigDict. Its keys differ by config: to a type checker, anything.
Config = Any

_FACTORIES = {
    "data": data.DATASETS,
    "model": models.MODELS,
    "optimizer": optimizers.OPTIMIZERS,
    "recipe": recipes.RECIPES,
}


def load(
    path: str,
    overrides: Mapping[str, Any] | None = None,
    checker: Callable[[Config], Config] | None = None,
) -> Config:
    """The config of a file, with some keys changed.

    Args:
      path: a Python file with ``get_config()``; behind a colon what that is given.
      overrides: dotted key -> value.
      checker: of a config, returns it or raises ValueError; None is `check`, of training runs.

    Raises:
      ValueError: no such file, a file that fails, an unknown key (with near misses), or a
        value of another type.
    """
    config = read(path)
    # Names first: they decide which other keys there are.
    for key in sorted(overrides or {}, key=lambda key: not key.endswith(".name")):
        assign(config, key, (overrides or {})[key])
    return (checker or check)(config)


def read(path: str) -> Config:
    """What ``get_config()`` of a file returns, or of ``file.py:arm`` ``get_config("arm")``.

    Raises:
      ValueError: no such file, or one that fails; with the line.
    """
    path, colon, argument = path.partition(":")
    if not pathlib.Path(path).is_file():
        folder = pathlib.Path(path) if pathlib.Path(path).is_dir() else pathlib.Path(path).parent
        siblings = [str(file) for file in folder.glob("*.py")]
        raise ValueError(f"no such config: {path!r}{near_misses(path, siblings)}")
    try:
        made = runpy.run_path(path).get("get_config")
        if made is None:
            raise ValueError("no function get_config(); configs/base.py shows one")
        return made(argument) if colon else made()
    except Exception as error:
        own = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == path]
        line = error.lineno if isinstance(error, SyntaxError) else own[-1] if own else None
        place = path if line is None else f"{path}, line {line}"
        name = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        text = error.msg if isinstance(error, SyntaxError) else error
        raise ValueError(f"{place}: {name}{text}") from error


def assign(config: Config, key: str, value: Any) -> None:
    """Changes a dotted key of a config in place.

    A key that the file does not set is taken where the factory of that group has such
    an option.

    Raises:
      ValueError: an unknown key (with near misses), or a value of another type.
    """
    present = value_of(config, key)
    group, _, option = key.rpartition(".")
    if present is None or isinstance(present, inspect.Parameter):
        config[group][option] = value
        return
    try:
        config.update_from_flattened_dict({key: value})
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"config.{key} is {present!r}; {value!r} is of another type ({type(value).__name__})"
        ) from error


def drop_options(config: Config, group: str) -> list[str]:
    """Deletes what the factory that a group names now does not take; returns those keys.

    They are what the file said to another factory. Keys of the base config, such as
    ``data.validation``, are nobody's options and stay.
    """
    registry, name = _FACTORIES[group], config[group].name
    if name not in registry.names:
        return []
    known = {"name", *registry.options(name), *base.get_config()[group]}
    dropped = sorted(set(config[group]) - known)
    for option in dropped:
        del config[group][option]
    return [f"{group}.{option}" for option in dropped]


def value_of(config: Config, key: str) -> Any:
    """The value of a dotted key, or the default of an option that the file leaves out.

    Of an option without a default it is the parameter itself.

    Raises:
      ValueError: an unknown key, with near misses.
    """
    present = dict(flatten(config.to_dict(), groups=True))
    if key in present:
        return present[key]
    group, _, option = key.rpartition(".")
    absent = {}
    if group in _FACTORIES and group in config:
        absent = _FACTORIES[group].options(config[group].get("name", ""))
    if option in absent:
        parameter = absent[option]
        return parameter if parameter.default is parameter.empty else parameter.default
    known = [*present, *(f"{group}.{name}" for name in absent)]
    raise ValueError(f"unknown config key {key!r}{near_misses(key, known)}")


def check(config: Config) -> Config:
    """Returns ``config``; raises ValueError where a top-level key is unknown or missing.

    The keys below ``data``, ``model``, ``optimizer`` and ``recipe`` are options of
    registered factories, which check them in turn.
    """
    known = base.get_config().keys()
    for key in config:
        if key not in known:
            raise ValueError(f"unknown config key {key!r}{near_misses(key, known)}")
    if missing := sorted(set(known) - set(config)):
        raise ValueError(f"the config lacks {', '.join(missing)}; start from configs/base.py")
    counts = ("steps", "batch_size", "log_every", "eval_every", "checkpoint_every")
    check_least(config, {"seed": 0, **dict.fromkeys(counts, 1)})
    return config


def check_least(config: Mapping[str, Any], least: Mapping[str, int]) -> None:
    """Raises ValueError where a number of a flat config is below the least that can be meant."""
    for key, number in least.items():
        if config[key] < number:
            raise ValueError(f"config.{key} must be at least {number}, not {config[key]}")


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
