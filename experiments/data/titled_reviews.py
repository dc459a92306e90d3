"""Clothing reviews as a pretrained model reads them: its own tokens, title first."""

import hashlib
import logging

import numpy as np

from experiments.data import tables
from experiments.data.base import DATASETS, Dataset, Split
from experiments.data.reviews import LABELS, as_labels
from experiments.registry import near_misses

_LOG = logging.getLogger(__name__)
# Batches are as long as their longest review, in these shares of the longest allowed:
# a few lengths are a few compilations.
_BUCKETS = (0.5, 0.75, 1.0)


@DATASETS.register("titled_reviews")
def titled_reviews(
    path: str = "",
    tokenizer: str = "minilm",
    label: str = "recommended",
    length: int = 64,
    held_out: float = 0.1,
) -> Dataset:
    """22,641 reviews, their titles before them, in the tokens of a pretrained model.

    Which part a review is in follows from a hash of its text, so that a text that occurs
    twice is in one part: the test part takes ``held_out`` of all, the validation part as
    much again, the rest trains. Classes are weighted in the loss by ``n / (classes * n_c)``.

    Args:
      path: optional parquet file of the same columns, or a folder that holds one
        under the original name; by default it is downloaded once.
      tokenizer: a Hugging Face directory with tokenizer.json, or "minilm", which is
        downloaded once; the same as ``model.weights``.
      label: "recommended" (0/1, of which 82 % are ones) or "rating" (1 to 5, classes 0
        to 4).
      length: tokens a review; 64 cut two thirds of them.
      held_out: share of the test part.

    Returns:
      Inputs ``ids`` (n, length) int32 and ``mask`` (n, length) bool, False where padded;
      ``sizes["tokens"]`` is one more than the
      largest id.

    Raises:
      ValueError: an unknown label, parts that leave nothing to train on, a directory
        without a tokenizer, and a table of other columns.
    """
    # Late: `make demo` installs no tokenizers, and models import data.
    from experiments.huggingface import Tokenizer
    from experiments.pretrained import directory

    if label not in LABELS:
        raise ValueError(f"titled_reviews: unknown label {label!r}{near_misses(label, LABELS)}")
    if not 0 < held_out < 0.5:
        raise ValueError(f"data.held_out is a share in (0, 0.5), not {held_out}")
    file = tables.folder(path)
    file = file / tables.REVIEWS if file.is_dir() else file
    columns = tables.read(file, ["Title", "Review Text", LABELS[label]])
    rows = np.flatnonzero([text is not None for text in columns["Review Text"]])
    texts, titles = columns["Review Text"][rows], columns["Title"][rows]
    joined = [
        text if title is None else f"{title}. {text}"
        for title, text in zip(titles, texts, strict=True)
    ]
    _LOG.info("tokenising %d reviews", len(joined))
    ids, mask = Tokenizer(directory(tokenizer)).encode(joined, length)
    labels = np.array(columns[LABELS[label]][rows], np.int32)
    whole = Split({"ids": ids, "mask": mask}, as_labels(labels, label))
    place = np.array([share_of(text) for text in texts])
    test, validation = place < held_out, (place >= held_out) & (place < 2 * held_out)
    train = whole.take(np.flatnonzero(~test & ~validation))
    outputs = 1 if label == "recommended" else 5
    return Dataset(
        "binary" if label == "recommended" else "classification",
        train,
        whole.take(np.flatnonzero(test)),
        outputs=outputs,
        source="women's clothing e-commerce reviews, titles first",
        sizes={"tokens": int(ids.max()) + 1},
        validation=whole.take(np.flatnonzero(validation)),
        class_weights=balanced(train.labels, max(2, outputs)),
        buckets=tuple(sorted({max(1, round(share * length)) for share in _BUCKETS})),
    )


def share_of(text: str) -> float:
    """A number in [0, 1) that follows from the text alone.

    >>> share_of("Love it!") == share_of("Love it!"), round(share_of("Love it!"), 3)
    (True, 0.0)
    """
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) / 2**64


def balanced(labels: np.ndarray, classes: int) -> tuple[float, ...]:
    """``n / (classes * n_c)`` of every class c: each class weighs the same in the loss.

    >>> balanced(np.array([0, 1, 1, 1]), 2)
    (2.0, 0.6666666666666666)
    """
    counts = np.bincount(np.asarray(labels, np.int64), minlength=classes)
    return tuple(float(len(labels) / (classes * max(1, count))) for count in counts)
