"""The folder of a run: new, to be resumed, finished, or somebody else's."""

import json
import pathlib
import shutil
from typing import Any

from experiments import config as configs
from experiments import lock
from jaxsparse.files import PART, naming, replacing

CONFIG, REPORT = "config.json", "report.json"


def open_workdir(path: str, config: dict[str, Any], overwrite: bool) -> pathlib.Path:
    """Makes ``path`` ready for a run of ``config``.

    A folder that holds a run of the same config is left as it is (the run resumes).

    Args:
      path: the folder; made if need be.
      config: as ``config.to_json`` gives it; stored in ``config.json``.
      overwrite: delete a run that is there.

    Raises:
      ValueError: as `check_workdir`.
    """
    folder = check_workdir(path, config, overwrite)
    if overwrite:
        _empty(folder)
    if overwrite or not (folder / CONFIG).exists():
        write_json(folder / CONFIG, config)
    elif not finished(folder):
        for part in _parts(folder):
            part.unlink()
    return folder


def check_workdir(path: str, config: dict[str, Any], overwrite: bool) -> pathlib.Path:
    """Whether ``path`` will do for a run of ``config``; of it nothing is made but the folder.

    Args:
      path, config, overwrite: as in `open_workdir`.

    Raises:
      ValueError: the folder holds a run of another config (the differing keys are
        named), or files that no run made (never deleted).
    """
    folder = pathlib.Path(path)
    with naming(folder):
        folder.mkdir(parents=True, exist_ok=True)
        held = [file for file in folder.iterdir() if file.name != lock.NAME]
    if not (folder / CONFIG).exists():
        if len(held) > len(_parts(folder)):
            raise ValueError(
                f"{folder} holds files but no run (no {CONFIG}); choose another workdir"
            )
    elif not overwrite:
        cure = "give --overwrite to start again, or another workdir"
        if changes := configs.differences(read_json(folder / CONFIG, cure), config):
            raise ValueError(
                f"{folder} holds a run of another config; give --overwrite or another workdir. "
                f"Stored -> given:\n  " + "\n  ".join(changes)
            )
    return folder


def _parts(folder: pathlib.Path) -> list[pathlib.Path]:
    """Half-written files, which a kill leaves."""
    with naming(folder):
        return [file for file in folder.iterdir() if file.suffix == PART]


def _empty(folder: pathlib.Path) -> None:
    """Deletes a run, but for what says that it is one: a kill on the way may be repeated."""
    for file in folder.iterdir():
        with naming(file):
            if file.is_dir() and not file.is_symlink():
                shutil.rmtree(file)
            elif file.name not in (CONFIG, lock.NAME):
                file.unlink()


def finished(folder: pathlib.Path) -> bool:
    """Whether the run in ``folder`` came to its end: its last act is ``report.json``."""
    return (folder / REPORT).exists()


def read_report(folder: pathlib.Path) -> dict[str, Any]:
    """``report.json`` of a finished run."""
    cure = "delete it and start the same command again: the last steps are repeated"
    return read_json(folder / REPORT, cure)


def read_json(path: pathlib.Path, cure: str, kind: type = dict) -> Any:
    """What a JSON file holds.

    Raises:
      ValueError: it is torn, or was never JSON of this kind; names the file and the cure.
    """
    with naming(path):
        text = path.read_bytes()
    try:
        if isinstance(value := json.loads(text), kind):
            return value
        problem = f"a {type(value).__name__} in place of a {kind.__name__}"
    except ValueError as error:
        problem = str(error)
    raise ValueError(f"{path} is torn, or none of ours ({problem}); {cure}")


def write_json(path: pathlib.Path, value: Any) -> None:
    """Writes JSON whole or not at all."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def write_text(path: pathlib.Path, text: str) -> None:
    """Writes a text whole or not at all."""
    with replacing(path) as file:
        file.write(text.encode())
