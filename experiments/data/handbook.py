"""The Debian Administrator's Handbook: English prose, GPL-2+ or CC-BY-SA-3.0."""

import html.parser
import io
import logging
import tarfile

from experiments.data import download
from jaxsparse.files import replacing

PACKAGE = download.DebianPackage(
    project="debian-handbook",
    version="11.20220922",
    sha256="3d5dbeac1f1afc9c094eab9d0f701f6ecff99c4927d5a4794cf6c85678134faa",
)
_TEXT = "d3edc081c209381e4a994087a92a60e7b135b0824b69cb7fd88aee14c606302d"
_PAGES = "./usr/share/doc/debian-handbook/html/en-US/"
_LOG = logging.getLogger(__name__)


def paragraphs() -> list[str]:
    """3,032 paragraphs, in the order of the pages' names; fetched once, and then cached.

    Raises:
      DownloadError: the package could not be fetched, or a file has another hash.
    """
    file = download.cache_dir() / f"{PACKAGE.project}-{PACKAGE.version}" / "paragraphs.txt"
    if not file.exists():
        package = download.fetch_debian(PACKAGE)
        _LOG.info("reading the pages of %s", PACKAGE.project)
        file.parent.mkdir(parents=True, exist_ok=True)
        with replacing(file) as text:
            text.write("".join(f"{line}\n" for line in _read(package)).encode())
    download.check(file, _TEXT, "delete it to download it again")
    return file.read_text("utf-8").split("\n")[:-1]


def _read(package: bytes) -> list[str]:
    found: list[str] = []
    data = download.member_of_debian(package, "data.tar")
    with tarfile.open(fileobj=io.BytesIO(data)) as files:
        pages = {file.name: file for file in files if file.name.startswith(_PAGES)}
        for name in sorted(name for name in pages if name.endswith(".html")):
            content = files.extractfile(pages[name])
            assert content is not None  # a page is a file
            page = _Page()
            page.feed(content.read().decode("utf-8"))
            found += page.paragraphs
    return found


class _Page(html.parser.HTMLParser):
    """Collects what `<div class="para">` holds; one inside another is a paragraph of its own."""

    def __init__(self):
        super().__init__()
        self.paragraphs: list[str] = []
        # What each open <div> has said so far; None where it is no paragraph.
        self._open: list[list[str] | None] = []

    def handle_starttag(self, tag, attrs):
        if tag == "div":
            self._open.append([] if dict(attrs).get("class") == "para" else None)

    def handle_endtag(self, tag):
        said = self._open.pop() if tag == "div" and self._open else None
        if said is not None and (text := " ".join("".join(said).split())):
            self.paragraphs.append(text)

    def handle_data(self, data):
        inner = next((said for said in reversed(self._open) if said is not None), None)
        if inner is not None:
            inner.append(data)
