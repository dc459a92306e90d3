"""`Allocation`: how sparse every leaf is, how wide every group of units; a file of it."""

import dataclasses
import json
import math
import numbers
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from jaxsparse.allocation.jsons import parsed
from jaxsparse.files import naming, replacing
from jaxsparse.patterns.base import check_sparsity
from jaxsparse.patterns.rules import LeafSpec
from jaxsparse.pruning.distributions import Distribution, known_target
from jaxsparse.trees import near_misses

FORMAT = 1
_KEYS = ("format", "sparsities", "widths", "about")
# Sums of sparsities that differ by less were meant to be the same.
_SAME = 1e-6


@dataclasses.dataclass(frozen=True)
class Allocation(Distribution):
    """What a search found, and a distribution: `js.prune(rules, distribution=allocation)`.

    It has a sparsity for every leaf itself, so none is given beside it. Every leaf that the
    rules name, but for n:m and for rules with a sparsity of their own, has to be in it, and all
    that is in it has to be named by a rule. Widths are for `narrow`, which makes masks of them
    that `js.graph.shrink` takes; a distribution does not look at them.

    Attributes:
      sparsities: slash path of a leaf -> fraction of zeros, in [0, 1).
      widths: name of a unit group of `js.graph.structure` -> units that are kept, at least 1.
      about: where it comes from: text, numbers and truth values, for the reader of the file.
        Two allocations that differ in it alone are equal.

    Raises:
      ValueError: a sparsity outside [0, 1) or NaN, a width below 1; the key is named.
      TypeError: values of another kind.

    Example:
      >>> import jax.numpy as jnp, jaxsparse as js
      >>> allocation = Allocation({"up": 0.75, "down": 0.5})
      >>> params = {"up": jnp.arange(8.0), "down": jnp.arange(8.0)}
      >>> rules = [js.Rule(".*", js.Unstructured())]
      >>> masks = js.compute_masks(params, rules, distribution=allocation)
      >>> {path: int(mask.sum()) for path, mask in sorted(masks.items())}
      {'down': 4, 'up': 2}
    """

    shares: ClassVar[bool] = False
    sparsities: Mapping[str, float] = dataclasses.field(default_factory=dict)
    widths: Mapping[str, int] = dataclasses.field(default_factory=dict)
    about: Mapping[str, str | float | bool] = dataclasses.field(default_factory=dict, compare=False)

    def __post_init__(self):
        for name, check in (("sparsities", _sparsity), ("widths", _width), ("about", _remark)):
            given = getattr(self, name)
            if not isinstance(given, Mapping):
                raise TypeError(f"allocation: {name} is {given!r}; a dictionary would work")
            for key in given:
                if not isinstance(key, str) or not key:
                    raise TypeError(f"allocation: {name}: the key {key!r} is no name")
            found = {key: check(f"allocation: {name}[{key!r}]", v) for key, v in given.items()}
            object.__setattr__(self, name, found)

    def __hash__(self) -> int:
        return hash((tuple(sorted(self.sparsities.items())), tuple(sorted(self.widths.items()))))

    def targets(self, specs: Mapping[str, LeafSpec], sparsity: float | None) -> dict[str, float]:
        """The sparsity of every leaf.

        Raises:
          ValueError: a leaf that only one of the two knows, or of which they say different
            things, and a `sparsity` that is not that of the allocation.
        """
        for path, share in self.sparsities.items():
            if path not in specs:
                raise ValueError(
                    f"the allocation names {path!r}, which no rule does; {near_misses(path, specs)}"
                )
            own = known_target(specs[path])
            if own is not None and abs(own - share) > _SAME:
                raise ValueError(
                    f"{path!r}: the allocation says sparsity {share}, its rule {own:.6g}; a rule "
                    "without, or an allocation that does not name it, would work"
                )
        rest = [spec for spec in specs.values() if known_target(spec) is None]
        known = {path: known_target(spec) for path, spec in specs.items()}
        own = {path: target for path, target in known.items() if target is not None}
        return self.fill(sparsity, rest) | own

    def fill(self, sparsity: float | None, specs: Sequence[LeafSpec]) -> dict[str, float]:
        for spec in specs:
            if spec.path not in self.sparsities:
                cure = near_misses(spec.path, self.sparsities)
                if not self.sparsities and self.widths:
                    cure = "it has widths alone, for js.allocation.narrow and js.graph.shrink"
                raise ValueError(f"the allocation has no sparsity for leaf {spec.path!r}; {cure}")
            check_sparsity(spec.path, self.sparsities[spec.path], spec.pattern)
        found = {spec.path: self.sparsities[spec.path] for spec in specs}
        if sparsity is not None and specs:
            sizes = {spec.path: math.prod(spec.view.shape) for spec in specs}
            whole = sum(sizes.values())
            total = sum(found[path] * size for path, size in sizes.items()) / max(whole, 1)
            if not abs(total - sparsity) <= _SAME:
                raise ValueError(
                    f"sparsity={sparsity} beside an allocation whose leaves together have "
                    f"{total:.6g}; without sparsity= it would work"
                )
        return found

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes JSON, to be read and edited by hand.

        Raises:
          OSError: the file cannot be written; it is named.
        """
        with replacing(pathlib.Path(path)) as file:
            file.write(json.dumps(self.to_dict(), indent=1, ensure_ascii=False).encode() + b"\n")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Allocation":
        """Reads what `save` wrote, or a hand made of it.

        Raises:
          ValueError: no JSON, a key that is unknown, missing or there twice, or a value out of
            range; file and key are named.
          OSError: the file cannot be read.
        """
        file = pathlib.Path(path)
        with naming(file):
            text = file.read_bytes()
        try:
            return cls.from_dict(parsed(text))
        except (ValueError, TypeError) as error:
            raise ValueError(f"{file}: {error}") from error

    def to_dict(self) -> dict[str, Any]:
        """What JSON holds."""
        found = {"format": FORMAT, "sparsities": dict(self.sparsities), "widths": dict(self.widths)}
        return found | ({"about": dict(self.about)} if self.about else {})

    @classmethod
    def from_dict(cls, found: Any) -> "Allocation":
        """The inverse of `to_dict`.

        Raises:
          ValueError: as `load`.
        """
        if not isinstance(found, dict):
            raise ValueError(f"allocation: {type(found).__name__} is no mapping; {_example()}")
        for key in found:
            if key not in _KEYS:
                raise ValueError(f"allocation: unknown key {key!r}; {near_misses(key, _KEYS)}")
        if found.get("format") != FORMAT:
            raise ValueError(f"allocation: format is {found.get('format')!r}; {FORMAT} would work")
        if not {"sparsities", "widths"} & found.keys():
            raise ValueError(f"allocation: neither sparsities nor widths; {_example()}")
        return cls(*(found.get(key, {}) for key in ("sparsities", "widths", "about")))


def _sparsity(where: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{where} is {value!r}; a fraction of zeros such as 0.5 would work")
    check_sparsity(where, float(value))
    return float(value)


def _width(where: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{where} is {value!r}; how many units are kept, such as 8, would work")
    if value < 1:
        raise ValueError(f"{where} is {value}; every group keeps 1 unit at least")
    return int(value)


def _remark(where: str, value: Any) -> str | float | bool:
    if isinstance(value, str | bool):
        return value
    if not isinstance(value, numbers.Real) or not math.isfinite(value):
        raise TypeError(f"{where} is {value!r}; text, a finite number or a truth value would work")
    return int(value) if isinstance(value, numbers.Integral) else float(value)


def _example() -> str:
    return f'{{"format": {FORMAT}, "sparsities": {{"layer/kernel": 0.5}}}} would work'
