"""Metrics on disk: JSON lines and TensorBoard, both continued after a kill."""

import json
import logging
import pathlib
from typing import Any

import tensorboardX

from jaxsparse.files import naming, replacing

_LOG = logging.getLogger(__name__)


def read(path: pathlib.Path) -> list[dict[str, Any]]:
    """The complete records of a JSON-lines file; a torn last line is left out.

    Raises:
      ValueError: a line before the last is no record; names file and line.
    """
    if not path.exists():
        return []
    # What follows the last newline is empty, or was being written at the kill.
    *lines, torn = path.read_bytes().split(b"\n")
    if torn:
        _LOG.warning("%s: the last line is half-written and left out", path)
    return [_record(path, number, line) for number, line in enumerate(lines, 1)]


def _record(path: pathlib.Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        record = json.loads(line)
        if isinstance(record["step"], int):
            return record
    except (ValueError, TypeError, KeyError):
        pass
    raise ValueError(
        f"{path}, line {number} is no record of a step: {line[:80]!r}; repair or delete the line"
    )


class MetricWriter:
    """Writes one record per call to ``metrics.jsonl`` and to TensorBoard.

    Args:
      folder: the run's folder.
      step: the number of steps that are done. Records beyond it come from a part of
        the run that was lost and will be repeated: they are removed, and TensorBoard
        is told to forget them.
    """

    def __init__(self, folder: pathlib.Path, step: int):
        self._path, events = folder / "metrics.jsonl", folder / "tensorboard"
        self.history = [record for record in read(self._path) if record["step"] <= step]
        with replacing(self._path) as file:
            file.writelines(json.dumps(record).encode() + b"\n" for record in self.history)
        with naming(self._path):
            self._lines = self._path.open("ab")
        with naming(events):
            purged = step + 1 if step else None
            self._board = tensorboardX.SummaryWriter(str(events), purge_step=purged)

    def write(self, step: int, **values: float) -> None:
        """Appends ``{"step": step, **values}``; on disk when this returns.

        Raises:
          OSError: the disk is full or the like; the file is named.
        """
        record = {"step": step, **values}
        self.history.append(record)
        with naming(self._path):
            self._lines.write(json.dumps(record).encode() + b"\n")
            self._lines.flush()
        with naming(self._board.logdir):
            for name, value in values.items():
                self._board.add_scalar(name, value, step)
            self._board.flush()

    def close(self) -> None:
        """Closes both files."""
        try:
            with naming(self._path):
                self._lines.close()
        finally:
            with naming(self._board.logdir):
                self._board.close()
