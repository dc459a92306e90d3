"""Data sets by name: ``load(name, **options)`` gives a :class:`Dataset`."""

from experiments.data import digits, mnist, movielens, npz, reviews, titled_reviews
from experiments.data.base import (
    DATASETS,
    Batches,
    Dataset,
    Split,
    hold_out,
    in_order,
    load,
    predict_all,
)

__all__ = [
    "DATASETS",
    "Batches",
    "Dataset",
    "Split",
    "digits",
    "hold_out",
    "in_order",
    "load",
    "mnist",
    "movielens",
    "npz",
    "predict_all",
    "reviews",
    "titled_reviews",
]
