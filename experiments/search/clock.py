"""Seconds of a stage, those of killed runs among them."""

import pathlib
import time

from experiments import workdir

_EVERY = 5.0


class Clock:
    """Counts on from what its file has; a kill loses a few seconds.

    Args:
      file: where the seconds are kept.
    """

    def __init__(self, file: pathlib.Path):
        self._file = file
        self._before = 0.0
        if file.exists():
            self._before = float(
                workdir.read_json(file, "delete it: minutes count anew")["seconds"]
            )
        self._start = self._written = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Of this stage so far."""
        return self._before + time.perf_counter() - self._start

    def tick(self) -> None:
        """Notes the time, if that was not done for some seconds."""
        if time.perf_counter() - self._written > _EVERY:
            workdir.write_json(self._file, {"seconds": self.seconds})
            self._written = time.perf_counter()
