"""JSON of files that a hand or another program may have been at."""

import json
from collections.abc import Sequence
from typing import Any

from jaxsparse.text import shorten

_DIGITS = 300  # of whole numbers: more are no float


def parsed(text: bytes | str) -> Any:
    """What JSON holds, all its whole numbers small enough to be floats.

    Raises:
      ValueError: no JSON, a key that is there twice, nesting or a number beyond all bounds.

    >>> parsed('{"a": [1, 2.5]}')
    {'a': [1, 2.5]}
    """
    try:
        return json.loads(text, object_pairs_hook=_once, parse_int=_whole)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {key!r} is there twice")
        found[key] = value
    return found


def _whole(digits: str) -> int:
    if len(digits) > _DIGITS:
        raise ValueError(f"the number {shorten(digits)} has {len(digits)} digits")
    return int(digits)
