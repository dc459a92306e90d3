"""Calibration and test never share a document, windows are exact, and what is short is said."""

import io
import subprocess
import sysconfig
import tarfile

import numpy as np
import pytest

from experiments.data import corpora, download, handbook
from experiments.data.download import DownloadError

PARAGRAPHS = [f"{number} is a number of {'many ' * (number % 7)}words." for number in range(4000)]


def encode(text):
    return list(text.encode())


@pytest.fixture
def notes(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("\n\n".join(PARAGRAPHS))
    return str(path)


def numbers(windows):
    """The paragraphs that windows show whole, but for those that they cut."""
    text = windows.astype(np.uint8).tobytes().decode()
    return {line for line in text.split("\n\n")[1:-1]}


def test_no_paragraph_is_on_both_sides(notes):
    tested = numbers(corpora.test(notes, encode, 40, 256))
    seen = [numbers(corpora.calibration(notes, encode, 40, 256, seed)) for seed in (0, 1)]
    assert len(tested) > 200 and tested <= set(PARAGRAPHS)
    assert not tested & (seen[0] | seen[1])
    assert seen[0] != seen[1]


def test_windows_follow_from_the_seed(notes):
    first = corpora.calibration(notes, encode, 3, 64, 5)
    assert first.shape == (3, 64) and first.dtype == np.int32
    np.testing.assert_array_equal(first, corpora.calibration(notes, encode, 3, 64, 5))
    as_array = corpora.calibration(notes, lambda text: np.array(encode(text)), 3, 64, 5)
    np.testing.assert_array_equal(first, as_array)
    np.testing.assert_array_equal(first[:2], corpora.calibration(notes, encode, 2, 64, 5))


def test_documents_hold_all_text_in_order(notes):
    found = corpora.documents(notes)
    assert "\n\n".join(found) == "\n\n".join(PARAGRAPHS)
    assert min(map(len, found)) >= 1200


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"short", r"calibration on .* needs 3 windows of 64 tokens, 192, and its \d document"),
        (b"", "its 0 documents have 0"),
        (b"\xff\xfe", "is no text in UTF-8"),
    ],
)
def test_what_is_too_short_or_no_text(content, message, tmp_path):
    path = tmp_path / "notes.txt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        corpora.calibration(str(path), encode, 3, 64, 0)


def test_an_unknown_corpus():
    with pytest.raises(ValueError, match=r"'review' is no corpus and no text file; docstrings"):
        corpora.documents("review")


def test_docstrings(tmp_path, monkeypatch):
    (tmp_path / "a.py").write_text(
        '"""Module."""\nclass A:\n    """Class."""\n    async def b():\n        """Method."""\n'
    )
    monkeypatch.setattr(sysconfig, "get_path", lambda _: str(tmp_path))
    assert corpora.documents("docstrings") == ["Module.\n\nClass.\n\nMethod."]


@pytest.fixture
def mirror(tmp_path, monkeypatch):
    """A package of two pages in place of apt-get and the network."""
    monkeypatch.setenv("JAXSPARSE_CACHE", str(tmp_path / "cache"))
    pages = {
        "b.html": '<div class="para">Second</div>',
        "a.html": '<p>no</p><div class="para">First <b>of\n all<div class="para">Inner</div></b> '
        "&amp; on</div>",
    }
    files = io.BytesIO()
    with tarfile.open(fileobj=files, mode="w:xz") as archive:
        for name, page in pages.items():
            entry = tarfile.TarInfo(f"{handbook._PAGES}{name}")
            entry.size = len(page)
            archive.addfile(entry, io.BytesIO(page.encode()))
    package = b"!<arch>\n"
    for name, content in (("debian-binary", b"2.0\n."), ("data.tar.xz", files.getvalue())):
        package += f"{name:16}{'':32}{len(content):<10}`\n".encode() + content
        package += b"\n" * (len(content) % 2)
    monkeypatch.setattr(
        handbook,
        "PACKAGE",
        download.DebianPackage("some-book", "1.0", download.hashlib.sha256(package).hexdigest()),
    )
    served = {"package": package}

    def apt(command, *, cwd, **_):
        if "package" in served:
            (download.pathlib.Path(cwd) / "some-book_1.0_all.deb").write_bytes(served["package"])
        return subprocess.CompletedProcess(command, 0, "", "no such package")

    monkeypatch.setattr(download.subprocess, "run", apt)
    return served


def test_paragraphs_of_a_package(mirror, monkeypatch):
    text = b"Inner\nFirst of all & on\nSecond\n"
    monkeypatch.setattr(handbook, "_TEXT", download.hashlib.sha256(text).hexdigest())
    expected = ["Inner", "First of all & on", "Second"]
    assert handbook.paragraphs() == expected
    mirror.clear()  # a second time is offline
    assert handbook.paragraphs() == expected
    (download.cache_dir() / "some-book-1.0" / "paragraphs.txt").write_text("other")
    with pytest.raises(DownloadError, match=r"paragraphs.txt is not the pinned file"):
        handbook.paragraphs()


def test_a_package_that_is_altered_or_missing(mirror):
    mirror["package"] += b"!"
    with pytest.raises(DownloadError, match=r"some-book_1.0_all.deb is not the pinned file"):
        handbook.paragraphs()
    mirror.clear()
    with pytest.raises(DownloadError, match=r"could not download some-book=1.0 .*no such package"):
        handbook.paragraphs()
