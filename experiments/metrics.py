"""Metrics on disk: JSON lines and TensorBoard, both continued after a kill."""

import json
import os
import pathlib
from typing import Any

import tensorboardX


def read(path: pathlib.Path) -> list[dict[str, Any]]:
    """The complete records of a JSON-lines file; a torn last line is left out."""
    if not path.exists():
        return []
    lines = path.read_text().split("\n")
    # What follows the last newline is empty, or was being written at the kill.
    return [json.loads(line) for line in lines[:-1]]


class MetricWriter:
    """Writes one record per call to ``metrics.jsonl`` and to TensorBoard.

    Args:
      folder: the run's folder.
      step: the number of steps that are done. Records beyond it come from a part of
        the run that was lost and will be repeated: they are removed, and TensorBoard
        is told to forget them.
    """

    def __init__(self, folder: pathlib.Path, step: int):
        path = folder / "metrics.jsonl"
        self.history = [record for record in read(path) if record["step"] <= step]
        part = path.with_suffix(".part")
        part.write_text("".join(json.dumps(record) + "\n" for record in self.history))
        os.replace(part, path)
        self._lines = path.open("a")
        self._board = tensorboardX.SummaryWriter(
            str(folder / "tensorboard"), purge_step=step + 1 if step else None
        )

    def write(self, step: int, **values: float) -> None:
        """Appends ``{"step": step, **values}``; on disk when this returns."""
        record = {"step": step, **values}
        self.history.append(record)
        self._lines.write(json.dumps(record) + "\n")
        self._lines.flush()
        for name, value in values.items():
            self._board.add_scalar(name, value, step)
        self._board.flush()

    def close(self) -> None:
        """Closes both files."""
        self._lines.close()
        self._board.close()
