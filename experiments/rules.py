"""Patterns and distributions as a config spells them."""

import re
from collections.abc import Sequence

import jaxsparse as js
from experiments.registry import near_misses
from jaxsparse.patterns.base import Pattern
from jaxsparse.pruning.distributions import Distribution

_DISTRIBUTIONS = {"uniform": js.uniform, "erk": js.erk, "global": js.global_}


def parse_pattern(text: str) -> Pattern:
    """A pattern from its short spelling.

    "unstructured"; "4x16" (blocks of 4 rows along the input axis by 16 columns);
    "2:4" (2 kept of every 4 along the input axis); "channel:1" (slices of an axis).
    " pad" behind blocks or n:m allows sizes that do not divide.

    Raises:
      ValueError: anything else.
    """
    body, pad = text.removesuffix(" pad"), text.endswith(" pad")
    if body == "unstructured" and not pad:
        return js.Unstructured()
    if match := re.fullmatch(r"(\d+)x(\d+)", body):
        return js.Block(int(match[1]), int(match[2]), pad=pad)
    if match := re.fullmatch(r"(\d+):(\d+)", body):
        return js.NM(int(match[1]), int(match[2]), pad=pad)
    if (match := re.fullmatch(r"channel:(-?\d+)", body)) and not pad:
        return js.Channel(int(match[1]))
    raise ValueError(
        f"unknown pattern {text!r}; write 'unstructured', '4x16', '2:4' or 'channel:0', "
        "with ' pad' behind blocks or n:m where sizes do not divide"
    )


def parse_rules(entries: Sequence[Sequence]) -> list[js.Rule]:
    """Rules from (path regex, pattern) or (path regex, pattern, sparsity) entries.

    Raises:
      ValueError: an entry of another form, or an unknown pattern.
    """
    if not isinstance(entries, Sequence) or isinstance(entries, str):
        raise ValueError(f"rules is a list of (path regex, pattern), not {entries!r}")
    rules = []
    for entry in entries:
        if isinstance(entry, str) or not isinstance(entry, Sequence) or len(entry) not in (2, 3):
            raise ValueError(
                f"a rule is (path regex, pattern) or (path regex, pattern, sparsity): {entry!r}"
            )
        sparsity = entry[2] if len(entry) == 3 else None
        rules.append(js.Rule(entry[0], parse_pattern(entry[1]), sparsity=sparsity))
    return rules


def parse_distribution(name: str) -> Distribution:
    """ "uniform", "erk", "global", or "global:0.999" with that most sparse a leaf may get;
    "global_by_size:0.999" where groups are of several sizes, each with its own threshold.

    Raises:
      ValueError: anything else, with the near misses.
    """
    if match := re.fullmatch(r"global(_by_size)?:(0?\.\d+)", name):
        return js.global_(maximum=float(match[2]), by_size=bool(match[1]))
    if name not in _DISTRIBUTIONS:
        raise ValueError(f"unknown distribution {name!r}{near_misses(name, _DISTRIBUTIONS)}")
    return _DISTRIBUTIONS[name]()
