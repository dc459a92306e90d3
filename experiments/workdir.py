"""The folder of a run: new, to be resumed, finished, or somebody else's."""

import json
import os
import pathlib
import shutil
from typing import Any

from experiments import config as configs


def open_workdir(path: str, config: dict[str, Any], overwrite: bool) -> pathlib.Path:
    """Makes ``path`` ready for a run of ``config``.

    A folder that holds a run of the same config is left as it is (the run resumes).

    Args:
      path: the folder; made if need be.
      config: as ``config.to_json`` gives it; stored in ``config.json``.
      overwrite: delete a run that is there.

    Raises:
      ValueError: the folder holds a run of another config (the differing keys are
        named), or files that no run made (never deleted).
    """
    folder = pathlib.Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    stored = folder / "config.json"
    # A half-written config.json.part is what a kill at the very start leaves.
    if not stored.exists() and any(file.suffix != ".part" for file in folder.iterdir()):
        raise ValueError(
            f"{folder} holds files but no run (no config.json); choose another workdir"
        )
    if stored.exists() and overwrite:
        shutil.rmtree(folder)
        folder.mkdir()
    if not stored.exists():
        write_json(stored, config)
    elif changes := configs.differences(json.loads(stored.read_text()), config):
        raise ValueError(
            f"{folder} holds a run of another config; give --overwrite or another workdir. "
            f"Stored -> given:\n  " + "\n  ".join(changes)
        )
    return folder


def finished(folder: pathlib.Path) -> bool:
    """Whether the run in ``folder`` came to its end: its last act is ``report.json``."""
    return (folder / "report.json").exists()


def read_report(folder: pathlib.Path) -> dict[str, Any]:
    """``report.json`` of a finished run."""
    return json.loads((folder / "report.json").read_text())


def write_json(path: pathlib.Path, value: Any) -> None:
    """Writes JSON whole or not at all."""
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n")
    os.replace(part, path)
