import numpy as np
import pytest
import tiny_reviews

from experiments import data
from experiments.data.titled_reviews import share_of


@pytest.fixture
def folder(tmp_path):
    tiny_reviews.write(tmp_path)
    return tmp_path


def load(folder, **options):
    options = {
        "path": str(folder),
        "tokenizer": str(folder),
        "length": 8,
        "held_out": 0.2,
    } | options
    return data.load("titled_reviews", **options)


def rows(split):
    return {tuple(row) for row in split.inputs["ids"][:, :3]}


def test_titles_come_first_and_parts_follow_from_the_text(folder, caplog):
    with caplog.at_level("INFO", logger="experiments"):
        loaded = load(folder)
    assert "tokenising 61 reviews" in caplog.text
    parts = (loaded.train, loaded.validation, loaded.test)
    assert sum(map(len, parts)) == 61 and loaded.outputs == 1
    found = np.concatenate([part.inputs["ids"] for part in parts])
    no, dress, dot, love = (tiny_reviews.WORDS.index(word) for word in ("no", "dress", ".", "love"))
    starts = {tuple(row[:4]) for row in found}
    assert (no, dress, dot, love) in starts and {row[0] for row in starts} == {no, love}
    expected = [share_of(f"love {'it ' * (i % 5)}{i}") for i in (*range(60), 0)]
    assert len(loaded.test) == np.sum(np.array(expected) < 0.2)
    assert len(loaded.validation) == np.sum(
        (np.array(expected) >= 0.2) & (np.array(expected) < 0.4)
    )
    np.testing.assert_array_equal(load(folder).test.inputs["ids"], loaded.test.inputs["ids"])


def test_classes_weigh_the_same(folder):
    for label, classes in (("recommended", 2), ("rating", 5)):
        loaded = load(folder, label=label)
        counts = np.bincount(loaded.train.labels.astype(int), minlength=classes)
        weights = np.array(loaded.class_weights)
        np.testing.assert_allclose(weights * counts, len(loaded.train) / classes)


def test_batches_are_as_long_as_they_must(folder):
    train = load(folder).train
    batches = data.Batches(train, 4, seed=0, buckets=(4, 6, 8))
    shapes, seen = set(), 0
    for step in range(batches.steps_per_epoch):
        inputs, labels = batches(step)
        longest, width = inputs["mask"].sum(axis=1).max(), inputs["ids"].shape[1]
        assert width == next(b for b in (4, 6, 8) if b >= longest)
        shapes.add(width)
        seen += len(labels)
    assert len(shapes) > 1 and seen == len(train) // 4 * 4
    inputs, _ = data.Batches(train, 4, seed=0, buckets=(4, 6, 8))(2)
    np.testing.assert_array_equal(inputs["ids"], batches(2)[0]["ids"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"label": "recomended"}, "unknown label 'recomended'; did you mean 'recommended'"),
        ({"held_out": 0.5}, r"held_out is a share in \(0, 0.5\), not 0.5"),
        ({"length": 17}, "length = 17 does not fit 1 to 16 positions"),
        ({"path": "nowhere"}, "no such file: 'nowhere'"),
    ],
)
def test_wrong_options(folder, options, message):
    with pytest.raises(ValueError, match=message):
        load(folder, **options)
