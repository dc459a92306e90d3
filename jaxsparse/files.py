"""Files that are whole or not there, and errors that say which file they are about."""

import contextlib
import os
import pathlib
import shutil
from collections.abc import Iterator
from typing import BinaryIO

PART = ".part"  # what is still being written ends in this


@contextlib.contextmanager
def naming(path: str | pathlib.Path) -> Iterator[None]:
    """Has every OSError of its block name `path`: a full disk alone names no file.

    >>> with naming("weights.npz"):
    ...     raise OSError(28, "No space left on device")
    Traceback (most recent call last):
    ...
    OSError: [Errno 28] No space left on device: 'weights.npz'
    """
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename == str(path):
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


@contextlib.contextmanager
def replacing(path: str | pathlib.Path) -> Iterator[BinaryIO]:
    """A file that takes the place of `path` when the block ends, whole and on disk.

    An error in the block, a full disk or a kill leave what was there before.

    Raises:
      OSError: the file cannot be written; names `path`.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = pathlib.Path(folder, "notes")
    ...     with replacing(file) as new:
    ...         _ = new.write(b"whole")
    ...     file.read_text()
    'whole'
    """
    target = pathlib.Path(os.path.realpath(path))
    part = target.with_name(f"{target.name}.{os.getpid()}{PART}")
    with naming(path):
        try:
            with part.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            if target.exists():
                shutil.copymode(target, part)
            os.replace(part, target)
        except BaseException:
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)
            raise
