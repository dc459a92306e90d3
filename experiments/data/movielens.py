"""MovieLens-100k: will this user like this film?

GroupLens' licence allows research and neither redistribution nor commercial use,
so the files are fetched by each user and never committed.
"""

import numpy as np

from experiments.data import tables
from experiments.data.base import DATASETS, Dataset, Split, hold_out
from experiments.registry import near_misses

GENRES = (
    *("unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime"),
    *("Documentary", "Drama", "Fantasy", "Film-Noir", "Horror", "Musical", "Mystery"),
    *("Romance", "Sci-Fi", "Thriller", "War", "Western"),
)
_LABELS = ("liked", "rating")


@DATASETS.register("movielens")
def movielens(path: str = "", label: str = "liked", test_fraction: float = 0.2) -> Dataset:
    """100,000 ratings of 1,682 films by 943 users, with what is known of both.

    No feature is made from ratings, so none can leak a label; the counts of ratings
    per user and per film come from the training split alone.

    Args:
      path: optional folder with the three original parquet files.
      label: "liked" (rating of 4 or 5, binary) or "rating" (a regression).
      test_fraction: the held-out share, random, the same rows for every seed.

    Returns:
      Inputs ``ids (n, 6)`` int32 (user, film, occupation, gender, region, year),
      ``genres (n, 19)`` float32 zeros and ones, ``dense (n, 4)`` float32 of mean 0
      and variance 1 on the training split (age, log counts of the user's and the
      film's ratings, age of the film). ``sizes["ids"]`` lists the vocabulary sizes.
    """
    if label not in _LABELS:
        raise ValueError(f"movielens: unknown label {label!r}{near_misses(label, _LABELS)}")
    folder = tables.folder(path)
    ratings = tables.read(folder / tables.RATINGS, ["user_id", "movie_id", "rating", "timestamp"])
    users = tables.read(
        folder / tables.USERS, ["user_id", "age", "gender", "occupation", "zip_code"]
    )
    films = tables.read(folder / tables.ITEMS, ["movie_id", "release_date", *GENRES])

    user, film = _row_of(ratings["user_id"], users), _row_of(ratings["movie_id"], films)
    released = _years(films["release_date"])
    per_user = [users["occupation"], users["gender"], [code[0] for code in users["zip_code"]]]
    codes = [np.unique(column, return_inverse=True)[1] for column in (*per_user, released // 5)]
    occupation, gender, region, era = codes
    ids = [user, film, occupation[user], gender[user], region[user], era[film]]
    sizes = [len(users["user_id"]), len(films["movie_id"]), *(int(c.max()) + 1 for c in codes)]
    rated = 1970.0 + ratings["timestamp"] / (365.25 * 24 * 3600)
    inputs = {
        "ids": np.stack(ids, axis=1).astype(np.int32),
        "genres": np.stack([films[name] for name in GENRES], axis=1)[film].astype(np.float32),
        "dense": np.stack([users["age"][user], rated - released[film]], axis=1),
    }
    labels = ratings["rating"].astype(np.float32)
    labels = (labels >= 4).astype(np.float32) if label == "liked" else labels

    train, test = hold_out(Split(inputs, labels), test_fraction, seed=0)
    train, test = _with_counts(train, test, sizes)
    return Dataset(
        "binary" if label == "liked" else "regression",
        train,
        test,
        outputs=1,
        source="MovieLens-100k of GroupLens",
        sizes={"ids": sizes, "genres": len(GENRES)},
    )


def _row_of(keys: np.ndarray, table: dict[str, np.ndarray]) -> np.ndarray:
    """The row of ``table`` in which each key stands; the first column is the key."""
    column = next(iter(table.values()))
    order = np.argsort(column, kind="stable")
    row = order[np.searchsorted(column, keys, sorter=order).clip(max=len(order) - 1)]
    if (column[row] != keys).any():
        raise ValueError(f"movielens: id {keys[column[row] != keys][0]} is rated but not described")
    return row


def _years(dates: np.ndarray) -> np.ndarray:
    """Years of dates such as 01-Jan-1995; the median year where there is none."""
    years = np.array([float(date[-4:]) if date else np.nan for date in dates])
    return np.where(np.isnan(years), np.nanmedian(years), years).astype(np.int64)


def _with_counts(train: Split, test: Split, sizes: list[int]) -> tuple[Split, Split]:
    """Adds log(1 + ratings in training) of user and film, and standardises."""
    counts = [
        np.log1p(np.bincount(train.inputs["ids"][:, column], minlength=sizes[column]))
        for column in (0, 1)
    ]
    for part in (train, test):
        ids = part.inputs["ids"]
        known = [counts[0][ids[:, 0]], counts[1][ids[:, 1]]]
        part.inputs["dense"] = np.column_stack([part.inputs["dense"], *known])
    mean, deviation = train.inputs["dense"].mean(axis=0), train.inputs["dense"].std(axis=0)
    for part in (train, test):
        scaled = (part.inputs["dense"] - mean) / np.maximum(deviation, 1e-6)
        part.inputs["dense"] = scaled.astype(np.float32)
    return train, test
