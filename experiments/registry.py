"""Names to factories, and errors that say what was probably meant."""

import difflib
import inspect
from collections.abc import Callable, Iterable
from typing import Any, Generic, TypeVar

T = TypeVar("T")


def near_misses(name: str, known: Iterable[str]) -> str:
    """A clause for the end of an error: the known names closest to ``name``.

    Args:
      name: what was asked for.
      known: what exists.

    Returns:
      ``"; did you mean 'a' or 'b'?"`` for up to three close names, otherwise
      the whole list: ``"; known: a, b, c"``.
    """
    known = sorted(set(known))
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.6)
    if close:
        return f"; did you mean {' or '.join(map(repr, close))}?"
    return f"; known: {', '.join(known) or 'none'}"


class Registry(Generic[T]):
    """A table of factories under one kind of name ("model", "recipe", ...).

    Args:
      kind: the noun that errors use.
      given: how many arguments of a factory come first and are no options, for the
        program gives them itself.
    """

    def __init__(self, kind: str, given: int = 0):
        self.kind, self.given = kind, given
        self._factories: dict[str, Callable[..., T]] = {}

    @property
    def names(self) -> list[str]:
        """All registered names, sorted."""
        return sorted(self._factories)

    def register(self, name: str) -> Callable[[Callable[..., T]], Callable[..., T]]:
        """Decorator that files a factory under ``name``; a taken name is an error."""

        def add(factory: Callable[..., T]) -> Callable[..., T]:
            if name in self._factories:
                raise ValueError(f"{self.kind} {name!r} is registered twice")
            self._factories[name] = factory
            return factory

        return add

    def options(self, name: str) -> dict[str, inspect.Parameter]:
        """What a config may tell the factory ``name``; nothing of an unknown one."""
        if name not in self._factories:
            return {}
        parameters = inspect.signature(self._factories[name]).parameters
        return dict([*parameters.items()][self.given :])

    def create(self, name: str, /, *args: Any, **options: Any) -> T:
        """Calls the factory ``name`` with ``args`` and the options of a config.

        Raises:
          ValueError: no such name, an option the factory does not take, or a
            required option that is missing; with the near misses.
        """
        if name not in self._factories:
            raise ValueError(f"unknown {self.kind} {name!r}{near_misses(name, self.names)}")
        factory = self._factories[name]
        parameters = list(inspect.signature(factory).parameters.values())[len(args) :]
        known = [p.name for p in parameters]
        for option in options:
            if option not in known:
                raise ValueError(
                    f"{self.kind} {name!r} has no option {option!r}{near_misses(option, known)}"
                )
        required = {p.name for p in parameters if p.default is inspect.Parameter.empty}
        if missing := sorted(required - set(options)):
            raise ValueError(f"{self.kind} {name!r} needs the option {', '.join(missing)}")
        return factory(*args, **options)
