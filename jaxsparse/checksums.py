"""SHA-256 of every file of a folder: a flipped bit on a disk is found, not trained on."""

import hashlib
import json
import pathlib

from jaxsparse.files import replacing

NAME = "checksums.json"


class Damaged(Exception):
    """What is on disk is not what was written; names the file."""


def write(folder: pathlib.Path) -> None:
    """Writes the checksums of all files in the folder's folders into `checksums.json`.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     folder = pathlib.Path(directory)
    ...     (folder / "part").mkdir()
    ...     file = folder / "part" / "data"
    ...     _ = file.write_text("weights")
    ...     write(folder)
    ...     _ = verify(folder)
    ...     _ = file.write_text("weighty")
    ...     try:
    ...         verify(folder)
    ...     except Damaged as error:
    ...         print(str(error).replace(directory, "run"))
    run/part/data is not what was written: its SHA-256 differs
    """
    inner = sorted(f for f in folder.glob("*/**/*") if f.is_file())
    sums = {file.relative_to(folder).as_posix(): _sha256(file) for file in inner}
    with replacing(folder / NAME) as file:
        file.write(json.dumps(sums, indent=1).encode())


def verify(folder: pathlib.Path) -> bool:
    """Compares a folder with its checksums; False if it has none.

    Raises:
      Damaged: a file is missing or differs, or the checksums are torn.
    """
    try:
        sums = json.loads((folder / NAME).read_bytes())
    except FileNotFoundError:
        return False
    except (OSError, ValueError) as error:
        raise Damaged(f"{folder / NAME} cannot be read: {error}") from error
    if not isinstance(sums, dict):
        raise Damaged(f"{folder / NAME} holds no checksums")
    for name, expected in sums.items():
        try:
            found = _sha256(folder / name)
        except OSError as error:
            raise Damaged(f"{folder / name} cannot be read: {error.strerror}") from error
        if found != expected:
            raise Damaged(f"{folder / name} is not what was written: its SHA-256 differs")
    return True


def _sha256(path: pathlib.Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
