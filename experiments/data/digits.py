"""Handwritten digits: 1,797 images of 8x8 that come with scikit-learn."""

import pathlib

import numpy as np

from experiments.data.base import DATASETS, Dataset, Split, hold_out


@DATASETS.register("digits")
def digits(path: str = "", test_fraction: float = 0.2, validation_fraction: float = 0.0) -> Dataset:
    """Ten classes of 8x8 grey images, scaled to [0, 1].

    The held-out fifth is the same for every seed: 1,438 images train, 359 test.

    Args:
      path: optional CSV (or .csv.gz) of the same layout in place of the embedded
        copy: 64 pixels in 0..16 and the class, one image a line.
      test_fraction: the held-out share.
      validation_fraction: of what is left, the share on which choices are made: a search never
        sees the test part. 0 leaves none.

    Returns:
      Images (n, 8, 8, 1) float32 and int32 classes.

    Raises:
      ValueError: a file of another layout.
    """
    if path:
        rows, source = _read(pathlib.Path(path)), path
    else:
        from sklearn import datasets  # late: it takes a second

        pixels, labels = datasets.load_digits(return_X_y=True)
        rows = np.column_stack([pixels, labels])
        source = "handwritten digits of scikit-learn"
    images = (rows[:, :64] / 16.0).astype(np.float32).reshape(-1, 8, 8, 1)
    train, test = hold_out(Split(images, rows[:, 64].astype(np.int32)), test_fraction, seed=0)
    validation = None
    if validation_fraction:
        train, validation = hold_out(train, validation_fraction, seed=1)
    return Dataset("classification", train, test, 10, source, validation=validation)


def _read(path: pathlib.Path) -> np.ndarray:
    rows = np.loadtxt(path, delimiter=",", ndmin=2)
    if rows.shape[1] != 65:
        raise ValueError(f"{path}: expected 65 columns (64 pixels, class), found {rows.shape[1]}")
    pixels, labels = rows[:, :64], rows[:, 64]
    if pixels.min() < 0 or pixels.max() > 16:
        raise ValueError(f"{path}: pixels range over 0..16, found {pixels.min()}..{pixels.max()}")
    if not np.isin(labels, np.arange(10)).all():
        raise ValueError(f"{path}: the last column holds classes 0 to 9")
    return rows
