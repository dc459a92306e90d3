"""The file of a scan: JSON, written after every cell and checked when it is read."""

import dataclasses
import itertools
import json
import math
import pathlib
from collections.abc import Mapping
from typing import Any, Literal, get_args

from jaxsparse.allocation.jsons import parsed
from jaxsparse.allocation.sensitivity.changes import Change, Kind, Target
from jaxsparse.files import naming, replacing
from jaxsparse.text import finite, shorten, whole
from jaxsparse.trees import near_misses

FORMAT = 1
Better = Literal["higher", "lower"]
Over = Literal["examples", "batches"]
_COLUMNS = Change._fields
_HEAD = ("better", "dense", "samples", "over", "ratios")
_MOST = 2**63 - 1


@dataclasses.dataclass(frozen=True)
class Record:
    """What is measured so far: a `Sensitivity` in which cells may be missing, None."""

    better: Better
    ratios: tuple[float, ...]
    targets: Mapping[str, Target]
    cells: Mapping[str, tuple[Change | None, ...]]
    dense: float
    samples: int
    over: Over
    run: Mapping[str, str]

    @property
    def total(self) -> int:
        """How many cells there are."""
        return len(self.cells) * len(self.ratios)

    @property
    def known(self) -> int:
        """How many of them are measured."""
        return sum(cell is not None for cells in self.cells.values() for cell in cells)

    def put(self, name: str, at: int, change: Change) -> "Record":
        """The record with one cell more."""
        cells = self.cells[name]
        new = (*cells[:at], change, *cells[at + 1 :])
        return dataclasses.replace(self, cells={**self.cells, name: new})

    def to_dict(self) -> dict[str, Any]:
        """What JSON holds; cells that are not there, and errors that are NaN, are null."""
        found = {name: getattr(self, name) for name in _HEAD}
        curves = {}
        for name, target in self.targets.items():
            cells = [cell or (None,) * len(_COLUMNS) for cell in self.cells[name]]
            curves[name] = target._asdict() | {
                column: [None if v is None or math.isnan(v) else v for v in values]
                for column, values in zip(_COLUMNS, zip(*cells, strict=True), strict=True)
            }
        run = {"curves": curves, "run": dict(self.run)}
        return {"format": FORMAT} | found | {"ratios": list(self.ratios)} | run

    def check_same(self, other: "Record", file: pathlib.Path) -> None:
        """Raises ValueError, naming what differs, unless another record is of the same scan."""
        differ = [n for n in ("better", "ratios") if getattr(self, n) != getattr(other, n)]
        differ += [part for part in self.run if self.run[part] != other.run.get(part)]
        if not differ and self.targets != other.targets:
            differ = ["targets"]
        if differ:
            raise ValueError(
                f"scan: {file} holds another scan, with another {' and another '.join(differ)}; "
                "a path that is not there would work"
            )


def write(file: pathlib.Path, record: Mapping[str, Any]) -> None:
    """Writes what JSON is to hold, whole or not at all."""
    with replacing(file) as opened:
        text = json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False)
        opened.write(text.encode() + b"\n")


def read(file: pathlib.Path) -> Record:
    """The record in a file.

    Raises:
      ValueError: it is none; names file and key.
      OSError: it cannot be read.
    """
    with naming(file):
        text = file.read_bytes()
    try:
        return _record(parsed(text))
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error


def _record(found: Any) -> Record:
    _check_keys("a scan", found, {"format", *_HEAD, "curves", "run"})
    if found["format"] != FORMAT:
        raise ValueError(f"field 'format': {shorten(found['format'])}; {FORMAT} would work")
    better, over = (_one_of(n, found[n], t) for n, t in (("better", Better), ("over", Over)))
    if not isinstance(found["ratios"], list) or not isinstance(found["curves"], dict):
        raise ValueError("fields 'ratios' and 'curves' are a list and a dictionary")
    ratios = tuple(finite("ratios", ratio) for ratio in found["ratios"])
    if not all(a < b for a, b in itertools.pairwise((0.0, *ratios, 1.0))):
        raise ValueError(f"field 'ratios': {shorten(found['ratios'])} do not rise between 0 and 1")
    run = found["run"]
    if not isinstance(run, dict) or not all(isinstance(v, str) for v in run.values()):
        raise ValueError(f"field 'run': {shorten(run)} is no dictionary of texts")
    targets, cells = {}, {}
    for name, each in found["curves"].items():
        targets[name], cells[name] = _curve(f"curves: {name}", each, len(ratios))
    dense, samples = finite("dense", found["dense"]), whole("samples", found["samples"], 1, _MOST)
    return Record(better, ratios, targets, cells, dense, samples, over, run)


def _curve(what: str, found: Any, length: int) -> tuple[Target, tuple[Change | None, ...]]:
    if isinstance(found, dict):
        found = {"padding": 0} | found
    _check_keys(what, found, {*Target._fields, *_COLUMNS})
    target = Target(
        _one_of(f"{what}: kind", found["kind"], Kind),
        whole(f"{what}: units", found["units"], 1, _MOST),
        whole(f"{what}: size", found["size"], 0, _MOST),
        finite(f"{what}: limit", found["limit"]),
        whole(f"{what}: padding", found["padding"], 0, _MOST),
    )
    if not 0 < target.limit <= 1:
        raise ValueError(f"field '{what}: limit': {target.limit} is not in (0, 1]")
    columns = []
    for column in _COLUMNS:
        values = found[column]
        if not isinstance(values, list) or len(values) != length:
            raise ValueError(f"field '{what}: {column}': not {length} numbers, one a ratio")
        columns.append([v if v is None else finite(f"{what}: {column}", v) for v in values])
    cells = []
    for metric, drop, error in zip(*columns, strict=True):
        if (metric is None) != (drop is None) or (drop is None and error is not None):
            raise ValueError(f"field {what!r}: of a cell only some of {', '.join(_COLUMNS)}")
        error = math.nan if error is None else error
        cells.append(None if drop is None else Change(metric, drop, error))
    return target, tuple(cells)


def _check_keys(what: str, found: Any, names: set[str]) -> None:
    if not isinstance(found, dict):
        raise ValueError(f"{what} is a dictionary, not {shorten(found)}")
    for key in found:
        if key not in names:
            raise ValueError(f"{what}: unknown field {key!r}; {near_misses(key, names)}")
    for name in sorted(names - found.keys()):
        raise ValueError(f"{what}: field {name!r} is not there")


def _one_of(field: str, value: Any, kinds: Any) -> Any:
    if value not in get_args(kinds):
        raise ValueError(f"field {field!r}: {shorten(value)} is none of {get_args(kinds)}")
    return value
