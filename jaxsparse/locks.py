"""One process at a time in a folder."""

import contextlib
import errno
import json
import os
import pathlib
import socket
import time
from collections.abc import Iterator

from jaxsparse.files import naming

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

NAME = ".lock"


@contextlib.contextmanager
def held(
    folder: str | pathlib.Path, instead: str = "its end, or another folder, would work"
) -> Iterator[None]:
    """Holds a folder, made if it is not there, for this process.

    The system lets go of the lock when the process ends, however it ends; the file that
    a killed one leaves behind stops nobody. Where the system knows no such locks, as Windows,
    nothing is held.

    Args:
      folder: to hold.
      instead: what would work where it is in use.

    Raises:
      ValueError: another process, or this one, holds it already; says who, and since when.
      OSError: the folder cannot be written to; the file is named.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder, held(folder):
    ...     os.listdir(folder)
    ['.lock']
    """
    with naming(folder):
        pathlib.Path(folder).mkdir(parents=True, exist_ok=True)
    if fcntl is None:
        yield
        return
    path = pathlib.Path(folder) / NAME
    with naming(path):
        file = _open(path, instead)
    try:
        owner = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%F %T")}
        with naming(path):
            os.ftruncate(file, 0)
            os.write(file, json.dumps(owner).encode())
        yield
    finally:
        with contextlib.suppress(OSError):  # somebody removed the folder
            path.unlink()
        os.close(file)


def _open(path: pathlib.Path, instead: str) -> int:
    assert fcntl is not None
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Whoever held it may have removed the file since it was opened here.
            if path.exists() and os.path.samestat(os.fstat(file), path.stat()):
                return file
        except OSError as error:
            owner = _owner(file)
            os.close(file)
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                raise
            raise ValueError(f"{path.parent} is in use by {owner}; {instead}") from error
        os.close(file)


def _owner(file: int) -> str:
    try:
        owner = json.loads(os.pread(file, 4096, 0))
        return f"process {owner['pid']} on {owner['host']}, since {owner['since']}"
    except (ValueError, KeyError, TypeError):  # it is about to write its name
        return "another process"
