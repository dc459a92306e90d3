"""Clothing reviews: short English texts, and whether the writer recommends the item."""

import collections
import re
from collections.abc import Iterable, Mapping

import numpy as np

from experiments.data import tables
from experiments.data.base import DATASETS, Dataset, Split, hold_out
from experiments.registry import near_misses

PADDING, UNKNOWN = 0, 1
_WORD = re.compile(r"[a-z]+(?:'[a-z]+)?|[0-9]+|[!?]")
LABELS = {"recommended": "Recommended IND", "rating": "Rating"}


@DATASETS.register("reviews")
def reviews(
    path: str = "",
    label: str = "recommended",
    length: int = 64,
    vocabulary: int = 8192,
    test_fraction: float = 0.2,
) -> Dataset:
    """22,634 distinct review texts as rows of token ids.

    Args:
      path: optional parquet file of the same columns, or a folder that holds one
        under the original name; by default it is downloaded once.
      label: "recommended" (0/1, of which 82 % are ones: look at the AUC) or
        "rating" (1 to 5, classes 0 to 4).
      length: tokens per review; longer ones are cut, shorter ones padded with 0.
      vocabulary: ids in use, padding and unknown among them. Built on the training
        split alone, the most frequent words first.
      test_fraction: the held-out share, the same rows for every seed.

    Returns:
      Inputs (n, length) int32; ``sizes["tokens"]`` is the vocabulary's size.
    """
    if label not in LABELS:
        raise ValueError(f"reviews: unknown label {label!r}{near_misses(label, LABELS)}")
    file = tables.folder(path)
    file = file / tables.REVIEWS if file.is_dir() else file
    columns = tables.read(file, ["Review Text", LABELS[label]])
    # A text that occurs twice could sit on both sides of the split.
    label_of = dict(zip(columns["Review Text"], columns[LABELS[label]], strict=True))
    label_of.pop(None, None)
    words = np.empty(len(label_of), object)
    words[:] = [_WORD.findall(text.lower()) for text in label_of]
    labels = np.array(list(label_of.values()), np.int32)

    train, test = hold_out(Split(words, labels), test_fraction, seed=0)
    ids = build_vocabulary(train.inputs, vocabulary)
    train, test = (
        Split(encode(part.inputs, ids, length), as_labels(part.labels, label))
        for part in (train, test)
    )
    return Dataset(
        "binary" if label == "recommended" else "classification",
        train,
        test,
        outputs=1 if label == "recommended" else 5,
        source="women's clothing e-commerce reviews",
        sizes={"tokens": len(ids) + 2},
    )


def build_vocabulary(texts: Iterable[list[str]], size: int) -> dict[str, int]:
    """Word -> id for the ``size - 2`` most frequent words; ties go by the alphabet."""
    counts = collections.Counter(word for text in texts for word in text)
    ranked = sorted(counts, key=lambda word: (-counts[word], word))
    return {word: index for index, word in enumerate(ranked[: size - 2], start=UNKNOWN + 1)}


def encode(texts: Iterable[list[str]], ids: Mapping[str, int], length: int) -> np.ndarray:
    """Token ids (n, length) int32 of word lists: cut at ``length``, padded behind."""
    texts = list(texts)
    tokens = np.full((len(texts), length), PADDING, np.int32)
    for row, text in zip(tokens, texts, strict=True):
        found = [ids.get(word, UNKNOWN) for word in text[:length]]
        row[: len(found)] = found
    return tokens


def as_labels(labels: np.ndarray, label: str) -> np.ndarray:
    """A column of the table as a task wants it: float32 0/1, or int32 classes from 0."""
    return labels.astype(np.float32) if label == "recommended" else labels - 1
