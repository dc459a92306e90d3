"""The command line of a run, with errors of one line that say the cure.

``ml_collections.config_flags`` would do the parsing, but it answers a mistake with a
traceback, and takes only keys that a config's file already sets.
"""

import argparse
import ast
import contextlib
import fractions
import inspect
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

import absl.logging

from experiments import config as configs
from experiments.data.download import DownloadError

_LOG = logging.getLogger(__name__)


@contextlib.contextmanager
def reported(go_on: str) -> Iterator[None]:
    """Tells a run's progress on standard error; a mistake or Ctrl-C ends the program in a line.

    Args:
      go_on: how a run that was stopped goes on.
    """
    # The checkpoint library tells every step of every save at level INFO.
    absl.logging.set_verbosity(absl.logging.WARNING)
    logging.basicConfig(format="%(message)s")
    logging.getLogger("experiments").setLevel(logging.INFO)
    try:
        yield
    except (ValueError, KeyError, OSError, DownloadError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        print(f"\nstopped; {go_on}", file=sys.stderr)
        sys.exit(130)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message}; --help lists what there is")


def parse(
    arguments: Sequence[str],
    description: str = "",
    *,
    program: str = "experiments.run",
    check: Callable[[Any], Any] = configs.check,
) -> argparse.Namespace:
    """The arguments of a run.

    Args:
      arguments: without the program's name.
      description: what ``--help`` says first.
      program: the module's name.
      check: of a config, returns it or raises ValueError.

    Returns:
      ``config`` (a checked config with the overrides applied), ``workdir`` and
      ``overwrite``.

    Raises:
      ValueError: whatever cannot be meant; one line.
    """
    parser = _Parser(
        prog=f"python -m {program}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--config", required=True, metavar="FILE", help="a config's Python file")
    parser.add_argument("--workdir", required=True, metavar="DIR", help="folder of the run")
    parser.add_argument(
        "--overwrite", action="store_true", help="delete the run in the folder first"
    )
    parser.add_argument_group("config keys").add_argument(
        "--config.KEY", metavar="VALUE", help="in place of what the file sets, such as seed=1"
    )
    options, rest = parser.parse_known_args(arguments)
    config = configs.read(options.config)
    pairs = _overrides(rest)
    # Names first: they decide which other keys there are.
    for key in sorted(pairs, key=lambda key: not key.endswith(".name")):
        present = configs.value_of(config, key)
        configs.assign(config, key, parse_value(key, pairs[key], present))
        group = key.removesuffix(".name")
        if key.endswith(".name") and (dropped := configs.drop_options(config, group)):
            _LOG.warning("left out, for %s has none of them: %s", pairs[key], ", ".join(dropped))
    options.config = check(config)
    return options


def _overrides(arguments: Sequence[str]) -> dict[str, str]:
    """Key -> text of every ``--config.key=value`` or ``--config.key value``."""
    found, rest = {}, list(arguments)
    while rest:
        argument = rest.pop(0)
        if not argument.startswith("--config."):
            raise ValueError(f"unexpected argument {argument!r}; --help lists what there is")
        key, equals, text = argument.removeprefix("--config.").partition("=")
        if not equals:
            if not rest:
                raise ValueError(f"{argument} needs a value: {argument}=VALUE")
            text = rest.pop(0)
        found[key] = text
    return found


def parse_value(key: str, text: str, present: Any) -> Any:
    """A value of the command line, of the type of the value that it replaces.

    Numbers may be fractions.

    Raises:
      ValueError: not of that type.

    >>> parse_value("recipe.begin", "1/4", 0.5), parse_value("model.hidden", "64,32", (300, 100))
    (0.25, (64, 32))
    """
    try:
        if isinstance(present, bool):
            return {"true": True, "1": True, "false": False, "0": False}[text.lower()]
        if isinstance(present, int):
            return int(text)
        if isinstance(present, float):
            return float(fractions.Fraction(text))
        if isinstance(present, str):
            return text
        value = ast.literal_eval(text)
        if isinstance(present, tuple | list):
            return tuple(value) if isinstance(value, tuple | list) else (value,)
        if isinstance(present, dict):
            raise ValueError("a group of keys")
        return value
    except (ValueError, KeyError, SyntaxError, ZeroDivisionError) as error:
        if isinstance(present, dict):
            names = ", ".join(f"{key}.{name}" for name in present)
            raise ValueError(f"config.{key} is a group of keys: {names}") from error
        if present is None or isinstance(present, inspect.Parameter):
            return text
        raise ValueError(
            f"config.{key} = {text!r} does not read as {_kind(present)} such as {present!r}"
        ) from error


def _kind(value: Any) -> str:
    kinds = {bool: "true or false,", int: "a whole number", float: "a number"}
    return kinds.get(type(value), f"a {type(value).__name__}")
