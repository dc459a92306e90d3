"""One process at a time in a workdir."""

import contextlib
import pathlib
from collections.abc import Iterator

from jaxsparse import locks

NAME = locks.NAME


@contextlib.contextmanager
def held(folder: str | pathlib.Path) -> Iterator[None]:
    """Holds ``folder``, which is made if need be, for this process: see `jaxsparse.locks.held`.

    Raises:
      ValueError: another process, or this one, holds it already; says who, and since when.
      ValueError: there is no such folder and none can be made.
      OSError: the folder cannot be written to; the file is named.
    """
    try:
        pathlib.Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(
            f"{folder} cannot be made a folder ({error.strerror}); choose a workdir where you "
            "may write, such as runs/first"
        ) from error
    with locks.held(folder, "wait for it, stop it, or choose another workdir"):
        yield
