import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from experiments import data
from experiments.data import movielens, reviews, tables


def test_digits_are_split_the_same_way_every_time():
    one, two = data.load("digits"), data.load("digits")
    assert one.train.inputs.shape == (1438, 8, 8, 1) and len(one.test) == 359
    np.testing.assert_array_equal(one.test.inputs, two.test.inputs)
    shares = np.bincount(one.test.labels) / 359
    np.testing.assert_allclose(shares, np.bincount(one.train.labels) / 1438, atol=0.01)
    assert one.train.inputs.max() == 1.0


def test_validation_leaves_the_test_split_alone():
    full, tuning = data.load("digits"), data.load("digits", validation=0.25)
    assert len(tuning.train) + len(tuning.test) == len(full.train)
    held = {image.tobytes() for image in tuning.test.inputs}
    assert not held & {image.tobytes() for image in full.test.inputs}


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("digit", {}, "unknown data set 'digit'; did you mean 'digits'"),
        ("digits", {"test_fracton": 0.1}, "has no option 'test_fracton'; did you mean"),
        ("digits", {"validation": 1.0}, r"validation is a fraction in \[0, 1\), not 1.0"),
        ("reviews", {"label": "recomended"}, "unknown label 'recomended'; did you mean"),
        ("movielens", {"label": "like"}, "unknown label 'like'; did you mean 'liked'"),
        ("movielens", {"path": "nowhere"}, "no such file: 'nowhere/MovieLens100k_data"),
        ("npz", {"path": "nowhere.npz"}, "data.path: no such file: 'nowhere.npz'"),
    ],
)
def test_wrong_options(name, options, message):
    with pytest.raises(ValueError, match=message):
        data.load(name, **options)


def test_digits_from_a_file(tmp_path):
    rows = np.column_stack([np.full((40, 64), 8.0), np.arange(40) % 10])
    np.savetxt(tmp_path / "d.csv", rows, delimiter=",")
    loaded = data.load("digits", path=str(tmp_path / "d.csv"))
    assert len(loaded.train) + len(loaded.test) == 40 and loaded.train.inputs.max() == 0.5
    np.savetxt(tmp_path / "d.csv", rows[:, 1:], delimiter=",")
    with pytest.raises(ValueError, match="expected 65 columns"):
        data.load("digits", path=str(tmp_path / "d.csv"))


def test_batches_are_a_function_of_seed_and_step():
    split = data.Split(np.arange(10), np.arange(10))
    batches, again = data.Batches(split, 3, seed=5), data.Batches(split, 3, seed=5)
    late = again(7)[0]
    np.testing.assert_array_equal(batches(7)[0], late)
    epoch = np.concatenate([batches(step)[0] for step in range(3)])
    assert len(set(epoch)) == 9
    assert not np.array_equal(epoch, np.concatenate([batches(s)[0] for s in range(3, 6)]))
    with pytest.raises(ValueError, match="batch_size 11 does not fit 1 to 10 examples"):
        data.Batches(split, 11, seed=0)


# A user's own arrays.


def npz(tmp_path, **arrays):
    np.savez(tmp_path / "own.npz", **arrays)
    return data.load("npz", path=str(tmp_path / "own.npz"))


def test_npz_with_and_without_a_test_part(tmp_path):
    x, y = np.random.rand(50, 3), np.arange(50) % 5
    loaded = npz(tmp_path, x_train=x, y_train=y)
    assert loaded.task == "classification" and loaded.outputs == 5
    assert (len(loaded.train), len(loaded.test)) == (40, 10)
    loaded = npz(tmp_path, x_train=x, y_train=y * 0.5, x_test=x[:7], y_test=y[:7] * 0.5)
    assert loaded.task == "regression" and loaded.outputs == 1 and len(loaded.test) == 7


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x_train": (4, 2), "y_trian": (4,)}, "unknown array 'y_trian'; did you mean 'y_train'"),
        ({"x_train": (4, 2)}, "array 'y_train' is missing"),
        ({"x_train": (4, 2), "y_train": (4,), "x_test": (4, 2)}, "array 'y_test' is missing"),
        ({"x_train": (4, 2), "y_train": (4, 1)}, r"y_train must have shape \(n,\), found \(4, 1\)"),
        ({"x_train": (5, 2), "y_train": (4,)}, r"with n = 4 as y_train, found \(5, 2\)"),
        ({"x_train": (4,), "y_train": (4,)}, r"x_train must have shape \(n, ...\)"),
        (
            {"x_train": (4, 2), "y_train": (4,), "x_test": (4, 3), "y_test": (4,)},
            r"x_test examples have shape \(3,\), those of x_train \(2,\)",
        ),
    ],
)
def test_npz_shape_errors(tmp_path, arrays, message):
    with pytest.raises(ValueError, match=message):
        npz(tmp_path, **{name: np.ones(shape) for name, shape in arrays.items()})


# The two tables, in the layout of the originals.


def write(folder, name, columns):
    pyarrow.parquet.write_table(pyarrow.table(columns), folder / name)


def test_reviews(tmp_path):
    texts = ["Love it!", "love the dress", None, "don't buy", "love it", "so so", "Love it!"]
    columns = {
        "Review Text": texts,
        "Recommended IND": [1, 1, 0, 0, 1, 0, 1],
        "Rating": [5, 4, 1, 1, 5, 3, 5],
    }
    write(tmp_path, tables.REVIEWS, columns)
    loaded = data.load("reviews", path=str(tmp_path), length=3, test_fraction=0.4)
    # One review has no text and one occurs twice.
    assert len(loaded.train) + len(loaded.test) == 5
    assert loaded.task == "binary" and loaded.train.inputs.shape[1] == 3
    assert loaded.train.inputs.max() < loaded.sizes["tokens"]
    rating = data.load("reviews", path=str(tmp_path / tables.REVIEWS), label="rating")
    assert rating.outputs == 5 and set(rating.train.labels) <= {0, 2, 3, 4}
    del columns["Rating"]
    write(tmp_path, tables.REVIEWS, columns)
    with pytest.raises(ValueError, match="no column 'Rating'"):
        data.load("reviews", path=str(tmp_path), label="rating")


def test_vocabulary_and_encoding():
    texts = [["b", "a"], ["b", "c"], ["a", "b"]]
    ids = reviews.build_vocabulary(texts, size=4)
    assert ids == {"b": 2, "a": 3}
    encoded = reviews.encode([["c", "b"], ["a", "a", "b"]], ids, length=2)
    np.testing.assert_array_equal(encoded, [[1, 2], [3, 3]])
    np.testing.assert_array_equal(reviews.encode([["b"]], ids, length=3), [[2, 0, 0]])


@pytest.fixture
def ratings(tmp_path):
    rows = [(user, film) for user in (3, 7, 9) for film in (2, 4, 5, 8)]
    write(
        tmp_path,
        tables.RATINGS,
        {
            "user_id": [user for user, _ in rows],
            "movie_id": [film for _, film in rows],
            "rating": [1 + index % 5 for index in range(12)],
            "timestamp": [880_000_000 + index for index in range(12)],
        },
    )
    write(
        tmp_path,
        tables.USERS,
        {
            "user_id": [9, 3, 7],
            "age": [20, 30, 40],
            "gender": ["F", "M", "M"],
            "occupation": ["artist", "other", "other"],
            "zip_code": ["10000", "V1X", "20000"],
        },
    )
    items = {"movie_id": [8, 5, 4, 2], "release_date": ["01-Jan-1995", None, "", "02-Feb-1990"]}
    write(tmp_path, tables.ITEMS, items | {name: [0, 1, 0, 1] for name in movielens.GENRES})
    return tmp_path


def test_movielens(ratings):
    loaded = data.load("movielens", path=str(ratings), test_fraction=0.25)
    assert loaded.task == "binary" and (len(loaded.train), len(loaded.test)) == (9, 3)
    assert loaded.sizes["ids"] == [3, 4, 2, 2, 3, 2]
    inputs = loaded.train.inputs
    assert inputs["ids"].shape == (9, 6) and inputs["genres"].shape == (9, 19)
    assert (inputs["ids"].max(axis=0) < loaded.sizes["ids"]).all()
    np.testing.assert_allclose(inputs["dense"].mean(axis=0), 0, atol=1e-5)
    assert data.load("movielens", path=str(ratings), label="rating").task == "regression"


def test_movielens_counts_come_from_the_training_split(ratings):
    loaded = data.load("movielens", path=str(ratings), test_fraction=0.25)
    user = loaded.train.inputs["ids"][:, 0]
    counts = np.log1p(np.bincount(user, minlength=3))[user]
    expected = (counts - counts.mean()) / max(counts.std(), 1e-6)
    np.testing.assert_allclose(loaded.train.inputs["dense"][:, 2], expected, atol=1e-4)


def test_movielens_refuses_ratings_of_unknown_films(ratings):
    table = pyarrow.parquet.read_table(ratings / tables.ITEMS)
    pyarrow.parquet.write_table(table.slice(1), ratings / tables.ITEMS)
    with pytest.raises(ValueError, match="id 8 is rated but not described"):
        data.load("movielens", path=str(ratings))
